"""Leases: which node has a task, for how long, and which one takes over."""

from __future__ import annotations

from msgspec.structs import replace

from dtq.stores.protocol import Node, Store
from dtq.task.transitions import cancel, interrupt, release, succeed
from dtq.testing.conformance.kit import (
    LEASE,
    NOW,
    Subject,
    done,
    end,
    expect,
    ids,
    job,
    jobs,
    promise,
    reap,
    start,
    take,
    the,
)


@promise("leases")
def check_a_heartbeat_extends_the_lease(store: Store) -> None:
    """A task whose worker sends heartbeats is not taken over."""
    store.add([job("a")])
    held = take(store)
    expect(store.heartbeat(Node("w1"), held, LEASE, NOW + 20), set(), "lost")
    expect(the(store, "a").lease_until, NOW + 20 + LEASE, "lease_until")
    expect(ids(store.reap("w2", 10, LEASE, NOW + LEASE + 1)), [], "reaped after the first lease")
    expect(ids(store.reap("w2", 10, LEASE, NOW + 20 + LEASE)), ["a"], "reaped after the second")


@promise("leases")
def check_a_heartbeat_publishes_progress(store: Store) -> None:
    """Progress and note of a heartbeat are visible at once. The version stays, so the outcome is still accepted."""
    store.add([job("a")])
    (task,) = start(store, "a")
    store.heartbeat(Node("w1"), [replace(task, progress=40.5, note="page 3: ü")], LEASE, NOW + 1)
    stored = the(store, "a")
    expect((stored.progress, stored.note, stored.version), (40.5, "page 3: ü", 2), "progress, note, version")
    expect(end(store, done(task)), {"a"}, "accepted")


@promise("leases")
def check_a_heartbeat_changes_nothing_but_lease_and_progress(store: Store) -> None:
    """A heartbeat changes no other field of the task, whatever the node believes of it."""
    store.add([job("a")])
    (task,) = start(store, "a")
    believed = replace(task, started_at=NOW - 50, attempts=9, priority=7, payload="another", progress=50.0)
    store.heartbeat(Node("w1"), [believed], LEASE, NOW + 1)
    expect(the(store, "a"), replace(task, lease_until=NOW + 1 + LEASE, progress=50.0), "the task")


@promise("leases")
def check_a_heartbeat_tells_what_is_lost(store: Store) -> None:
    """A heartbeat returns the tasks that were cancelled, finished, deleted or taken over, and does not change them."""
    store.add(jobs("cancelled deleted finished kept reaped"))
    held = take(store)
    first, second, third, _, fifth = held
    end(store, cancel(first, NOW), cancel(second, NOW), done(third), release(fifth))
    store.delete(["deleted"])
    (reaped,) = start(store, "reaped", worker="w2")
    lost = store.heartbeat(Node("w1"), held, LEASE, NOW + 10)
    expect(sorted(lost), ["cancelled", "deleted", "finished", "reaped"], "lost")
    expect(the(store, "reaped"), reaped, "the task that another worker holds now")
    expect(
        store.heartbeat(Node("w2"), [replace(reaped, worker="w1")], LEASE, NOW), {"reaped"}, "lost by the wrong worker"
    )


@promise("leases")
def check_a_node_shows_itself_and_leaves(store: Store) -> None:
    """A node is in the statistics, as it describes itself, from its first heartbeat until one with a lease of 0."""
    node = Node("w1", host="h", pid=7, started_at=NOW, workers=4, busy=1, types=("job", "mail"), metrics={"rss": 1.5})
    store.heartbeat(node, [], LEASE, NOW + 1)
    store.heartbeat(Node("w2", workers=2, busy=2), [], LEASE, NOW + 1)
    expect(sorted(node.id for node in store.stats().nodes), ["w1", "w2"], "nodes")
    expect([n for n in store.stats().nodes if n.id == "w1"], [replace(node, seen_at=NOW + 1)], "the first node")
    workers = store.stats().workers
    expect((workers.total, workers.active, workers.idle), (6, 3, 3), "workers: total, active, idle")
    store.heartbeat(replace(node, busy=3), [], LEASE, NOW + 2)
    expect(store.stats().workers.active, 5, "active workers after the next heartbeat")
    store.heartbeat(node, [], 0, NOW + 3)
    expect([node.id for node in store.stats().nodes], ["w2"], "nodes when one has left")


@promise("leases")
def check_only_an_expired_lease_is_reaped(store: Store) -> None:
    """A task is taken over only when its lease has expired, and only while it is processing."""
    store.add(jobs("a b c"))
    a, _ = start(store, "a b", n=2)
    end(store, done(a))
    expect(ids(store.reap("w2", 10, LEASE, NOW + LEASE - 0.01)), [], "reaped before the end of the lease")
    expect(ids(store.reap("w2", 10, LEASE, NOW + LEASE)), ["b"], "reaped at its end")
    expect(ids(store.reap("w3", 10, LEASE, NOW + LEASE + 1)), [], "reaped again")


@promise("leases")
def check_a_reaped_task_is_claimed_anew_without_an_attempt(store: Store) -> None:
    """A node that takes over a task gets a new version and a new lease; the attempt number stays."""
    store.add([job("a")])
    (task,) = start(store, "a")
    reaped = store.reap("w2", 10, LEASE, NOW + 40)
    expect(reaped, [replace(task, version=3, worker="w2", lease_until=NOW + 40 + LEASE)], "reaped")
    expect(store.get(["a"]), reaped, "the stored task")
    expect(end(store, interrupt(reaped[0], NOW + 40)), {"a"}, "accepted from the new owner")
    expect(
        [(t.attempts, t.interruptions) for t in take(store, now=NOW + 41)],
        [(1, 1)],
        "attempts and interruptions, claimed again",
    )


@promise("leases")
def check_a_reap_takes_at_most_n(store: Store) -> None:
    """A reap returns at most n tasks and leaves the others to the next reap."""
    store.add(jobs("a b c"))
    take(store)
    first = store.reap("w2", 2, LEASE, NOW + 50)
    second = store.reap("w3", 2, LEASE, NOW + 50)
    expect((len(first), len(second)), (2, 1), "tasks reaped by the first and by the second")
    expect(sorted(ids(first + second)), ["a", "b", "c"], "reaped")


@promise("leases")
def check_a_zombie_is_fenced(store: Store) -> None:
    """The outcome of a node that lost its task is refused, and that of the new owner is accepted."""
    store.add([job("a")])
    (task,) = start(store, "a")
    (reaped,) = reap(store, "a", NOW + 50)
    expect(end(store, succeed(task, "late", NOW + 51)), set(), "accepted from the old owner")
    expect(store.heartbeat(Node("w1"), [task], LEASE, NOW + 51), {"a"}, "lost by the old owner")
    expect(end(store, succeed(reaped, "new", NOW + 52)), {"a"}, "accepted from the new owner")
    expect(the(store, "a").result, "new", "result")


@promise("leases")
def check_a_node_cannot_reap_its_own_task_before_the_lease_ends(store: Store) -> None:
    """A node's reap does not take over its own tasks while their lease lasts."""
    store.heartbeat(Node("w1"), [], LEASE, NOW)
    store.add([job("a")])
    take(store)
    expect(ids(store.reap("w1", 10, LEASE, NOW + 1)), [], "reaped")


@promise("leases", twice=True)
def check_the_tasks_of_a_live_node_are_left_alone(subject: Subject) -> None:
    """Another process takes over no task of a live node before its lease expires."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    one.add([job("a")])
    (task,) = start(one, "a")
    expect(ids(two.reap("w2", 10, LEASE, NOW + 1)), [], "reaped")
    expect(end(one, done(task)), {"a"}, "accepted")


@promise("leases", twice=True)
def check_the_tasks_of_a_dead_node_are_taken_over_at_once(subject: Subject) -> None:
    """When a node is killed, others take over its tasks before the lease expires."""
    one, two = subject.open(), subject.open()
    for store, worker in ((one, "w1"), (two, "w2")):
        store.heartbeat(Node(worker), [], LEASE, NOW)
    one.add(jobs("a b c"))
    take(one, 2)
    take(two, 1, worker="w2")
    subject.crash_noticed(one)
    reaped = two.reap("w2", 10, LEASE, NOW + 1)
    expect(
        sorted((t.id, t.worker, t.attempts) for t in reaped), [("a", "w2", 1), ("b", "w2", 1)], "id, worker, attempts"
    )


@promise("leases", twice=True)
def check_a_dead_node_is_forgotten(subject: Subject) -> None:
    """A killed node is removed from the statistics once it has no tasks left."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    two.heartbeat(Node("w2"), [], LEASE, NOW)
    one.add([job("a")])
    take(one)
    subject.crash_noticed(one)
    end(two, *(interrupt(task, NOW) for task in two.reap("w2", 10, LEASE, NOW + 1)))
    two.reap("w2", 10, LEASE, NOW + 2)
    expect([node.id for node in two.stats().nodes], ["w2"], "nodes")


@promise("leases", twice=True)
def check_the_tasks_of_a_node_that_left_are_taken_over_at_once(subject: Subject) -> None:
    """When a node closes its store with tasks left, others take them over before the lease expires."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    two.heartbeat(Node("w2"), [], LEASE, NOW)
    one.add([job("a")])
    take(one)
    one.heartbeat(Node("w1"), [], 0, NOW)
    subject.close_noticed(one)
    expect(ids(two.reap("w2", 10, LEASE, NOW + 1)), ["a"], "reaped")
    two.reap("w2", 10, LEASE, NOW + 2)
    expect([node.id for node in two.stats().nodes], ["w2"], "nodes")


@promise("leases", twice=True)
def check_closing_a_store_ends_its_nodes(subject: Subject) -> None:
    """Closing a store removes its nodes from the statistics."""
    one, two = subject.open(), subject.open()
    one.heartbeat(Node("w1"), [], LEASE, NOW)
    two.heartbeat(Node("w2"), [], LEASE, NOW)
    one.close()
    expect([node.id for node in two.stats().nodes], ["w2"], "nodes")

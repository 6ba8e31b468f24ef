"""Names: which ones dtq keeps for itself, and that every public method checks the names it is given."""

from __future__ import annotations

import httpx
import pytest

from dtq import IllegalTransition, InvalidTask, QueueFull, QueueManager, TaskQueue, UnknownSchedule, UnknownTask
from dtq.policy import cron
from dtq.task import names
from dtq.task.model import Task

RESERVED = [
    {"type": "dtq.tick"},
    {"type": "dtq.webhook"},
    {"type": "dtq.anything"},
    {"queue": "dtq.schedules"},
    {"queue": "dtq.mine"},
    {"id": "dtq.schedule:report"},
    {"id": "dtq.x"},
    {"id": "report@2026-12-01T10:05:00Z"},
    {"id": "report@2026-12-01T10:05:00.250Z"},
    {"id": "x:webhook-2"},
    {"id": "report@2026-12-01T10:05:00Z:webhook-31"},
    {"key": "idempotency/0"},
]
FREE = [
    {"type": "dtq"}, {"type": "dtq_tick"}, {"type": "DTQ.tick"}, {"type": "my.dtq.tick"}, {"queue": "dtq"},
    {"id": "dtq"}, {"id": "ada@example.org"}, {"id": "report@2026-12-01"}, {"id": "report@2026-12-01T10:05:00"},
    {"id": "x:webhook"}, {"id": "x:webhook-"}, {"id": "x:webhook-2.b"}, {"id": "webhook-2"}, {"key": "idempotency"},
    {"key": "my/idempotency/0"}, {"key": "dtq.key"}, {"id": "report@2026-12-01T10:05:00Z-again"},
]  # fmt: skip
NO_NAMES = [5, None, ["a"], b"a", "", "*", "no spaces", "-a", "é", "a" * 201, "\ud800", "a\n"]
TOKENS = {"s" * 20: "submit", "a" * 20: "admin"}


@pytest.fixture(params=["memory:", "sqlite", "file"])
def manager(request, tmp_path):
    urls = {"sqlite": str(tmp_path / "queue.db"), "file": f"file:{tmp_path / 'queue'}"}
    with QueueManager(urls.get(request.param, request.param)) as manager:
        yield manager


def shown(given):
    return next(iter(given.values()))


# --- what is reserved


def ways_in(manager, options):
    """Return all calls of the manager that add a task with these options, which include a field that is reserved."""
    graph = {"one": {"type": "a"}, "two": {**options, "after": ["one"]}}
    ways = [
        lambda: manager.add(**options),
        lambda: manager.add_many([{"type": "a"}, options]),
        lambda: manager.add_many([Task(**options)]),
        lambda: manager.add(**{"key": "k", **options}, window=0, on_conflict="replace"),
    ]
    return ways if "id" in options else [*ways, lambda: manager.flow(graph)]  # a flow gives its tasks their ids


@pytest.mark.parametrize("given", RESERVED, ids=shown)
def test_a_reserved_name_is_refused_whichever_way_a_task_comes_in(manager, given):
    field = next(iter(given))
    for add in ways_in(manager, {"type": "a", **given}):
        with pytest.raises(InvalidTask, match=f"^{field} is .*; allowed: any {field} but one that"):
            add()
    assert manager.stats().total == 0


def test_no_reserved_name_passes_the_backlog_limit_or_hides_a_task(manager):
    """`find` and `stats` leave out the ticks of schedules, and the limit counts what `stats` counts."""
    manager.backlog_limit = 2
    for _ in range(2):
        for add in (way for given in RESERVED for way in ways_in(manager, {"type": "a", **given})):
            with pytest.raises(InvalidTask):
                add()
        manager.add("a")
    with pytest.raises(QueueFull):
        manager.add("a")
    assert manager.store.find() == manager.find()
    assert manager.store.stats().total == manager.stats().total == 2


@pytest.mark.parametrize("given", FREE, ids=shown)
def test_a_name_that_only_resembles_a_reserved_one_is_free(manager, given):
    manager.add(**{"type": "a", **given})


def test_a_flow_cannot_take_the_id_of_a_schedule_or_of_what_is_to_come(manager):
    for flow, step in [("dtq", "schedule:x"), ("f", "x@2026-12-01T10:05:00Z"), ("f@2026-12-01T10:05:00", "500Z"),
                       ("f", "x:webhook-2")]:  # fmt: skip
        with pytest.raises(InvalidTask, match=r"^id is"):
            manager.flow({step: {"type": "a"}}, id=flow)
    assert manager.stats().total == 0


def test_the_work_of_a_schedule_has_free_names_only(manager):
    for options in ({"type": "dtq.webhook"}, {"type": "a", "queue": "dtq.schedules"}):
        with pytest.raises(InvalidTask, match="which is reserved for dtq itself"):
            manager.schedule("s", every=10, **options)
    assert list(manager.schedules) == []


def test_a_schedule_cannot_have_a_reserved_name(manager):
    """The id of what it adds would look like that of another schedule's tick."""
    for name in ("dtq.x", "dtq.schedule:evil"):
        with pytest.raises(InvalidTask, match=r"name of the schedule is 'dtq\."):
            manager.schedule(name, type="a", every=10)


@pytest.mark.parametrize("executor", ["process", "inline"])
def test_a_handler_of_a_reserved_type_is_refused(tmp_path, executor):
    def handle(payload, context): ...

    with pytest.raises(InvalidTask, match=r"type is 'dtq\.tick'"):
        TaskQueue(tmp_path / "queue.db", {"dtq.tick": handle}, executor=executor)
    queue = TaskQueue(tmp_path / "queue.db", executor=executor)
    with pytest.raises(InvalidTask, match=r"type is 'dtq\.webhook'"):
        queue.register("dtq.webhook", handle)
    queue.close()


def test_ids_that_dtq_gives_are_all_reserved():
    from dtq.webhooks import deliveries

    for at in (0.0, 1e9, 1e9 + 0.25, 1e11):
        assert names.is_reserved_id(cron.work_id("a.b@c:d", at))
    done = Task(type="a", id="x", webhook=webhooks_of("https://example.org"), status="completed", version=2)
    (delivery,) = deliveries.deliveries(done, 5.0)
    assert names.is_reserved_id(delivery.id)
    assert names.is_reserved_id(cron.tick_id("x"))


def webhooks_of(url):
    from dtq import Webhook

    return Webhook(url)


# --- only schedules change their ticks


def test_a_tick_is_changed_by_its_schedule_only(manager):
    manager.schedule("s", type="a", every=3600)
    tick = cron.tick_id("s")
    for change in (manager.cancel, manager.retry, manager.delete, lambda id: manager.prioritise(id, 5)):
        with pytest.raises(IllegalTransition, match="the schedule 's'"):
            change(tick)
    with pytest.raises(UnknownTask):
        manager.get_flow("dtq")
    assert [schedule.name for schedule in manager.schedules] == ["s"]


def test_the_queue_of_schedules_can_neither_be_paused_nor_limited(manager):
    with pytest.raises(InvalidTask, match=r"queue is 'dtq\.schedules'"):
        manager.pause("dtq.schedules")
    with pytest.raises(InvalidTask, match=r"queue is 'dtq\.schedules'"):
        manager.limit("dtq.schedules", rate=1)
    with pytest.raises(InvalidTask, match=r"type is 'dtq\.tick'"):
        manager.limit(type="dtq.tick", rate=1)
    assert manager.limits() == []


def test_deliveries_of_webhooks_can_be_looked_at_and_limited(manager):
    assert manager.find(type="dtq.webhook") == []
    assert manager.limit(type="dtq.webhook", rate=5).rate == 5
    manager.unlimit(type="dtq.webhook")
    assert manager.limits() == []


# --- one check for every public method


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_by_every_method_and_changes_nothing(manager, name):
    calls = [
        manager.pause, manager.resume, lambda name: manager.schedule(name, type="a", every=5),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidTask):
            call(name)
    if name is not None:
        for call in (
            lambda name: manager.limit(name, rate=1), lambda name: manager.limit(type=name, rate=1),
            manager.unlimit, lambda name: manager.unlimit(type=name), lambda name: manager.find(queue=name),
            lambda name: manager.find(type=name), lambda name: manager.dead.find(queue=name),
            lambda name: manager.dead.redrive(type=name), lambda name: manager.dead.purge(queue=name),
            lambda name: manager.flow({"a": {"type": "a"}}, id=name),
        ):  # fmt: skip
            with pytest.raises(InvalidTask):
                call(name)
    unknown = UnknownTask if isinstance(name, str) else InvalidTask
    for call in (
        manager.get, manager.cancel, manager.retry, manager.wait_for, manager.get_flow, manager.dead.get,
        lambda id: manager.prioritise(id, 1),
    ):  # fmt: skip
        with pytest.raises(unknown):
            call(name)
    for change in (manager.delete, manager.dead.redrive, manager.dead.purge):
        if isinstance(name, str):
            assert not change(name)
        else:
            with pytest.raises(InvalidTask):
                change(name)
    unknown = UnknownSchedule if isinstance(name, str) else InvalidTask
    schedules = manager.schedules
    for call in (schedules.get, schedules.pause, schedules.resume, schedules.remove, schedules.upcoming):
        with pytest.raises(unknown):
            call(name)
    assert (manager.limits(), manager.stats().total, list(schedules)) == ([], 0, [])


@pytest.mark.parametrize("key", [5, ["a"], "a" * 201, "a\n"], ids=ascii)
def test_what_is_no_limit_key_is_refused(manager, key):
    for call in (lambda: manager.limit(key=key, rate=1), lambda: manager.unlimit(key=key)):
        with pytest.raises(InvalidTask, match="limit_key is"):
            call()
    assert manager.limits() == []


def test_a_limit_that_stands_can_be_lifted_whatever_it_is_called(manager):
    """An older dtq accepted every name."""
    manager.store.set_lane(queue="no spaces", paused=True)
    manager.store.set_lane(type="dtq.tick", rate=3)
    manager.resume("no spaces")
    manager.unlimit(type="dtq.tick")
    assert manager.limits() == []


# --- over HTTP


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    pytest.importorskip("starlette")
    from dtq import APIServer

    store = tmp_path_factory.mktemp("names") / "queue.db"
    with QueueManager(store) as manager, APIServer(manager, port=0, token=TOKENS) as server:
        manager.schedule("s", type="a", every=3600)
        yield server


@pytest.fixture
def submitter(api):
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {'s' * 20}"}) as client:
        yield client


@pytest.fixture
def admin(api):
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {'a' * 20}"}) as client:
        yield client


@pytest.mark.parametrize("given", RESERVED, ids=shown)
def test_no_token_adds_a_task_of_a_reserved_name(submitter, admin, given):
    field = next(iter(given))
    task = {"type": "a", **given}
    before = admin.get("/stats").json()["counts"]
    for client in (submitter, admin):
        for body, where in ((task, field), ([{"type": "a"}, task], f"[1].{field}")):
            answer = client.post("/tasks", json=body)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, where), answer.text
            answer = client.post("/tasks", json=body, headers={"Idempotency-Key": "k"})
            assert answer.status_code == (409 if field == "key" else 422), answer.text
        if field != "id":
            answer = client.post("/flows", json={"steps": {"one": {"type": "a"}, "two": task}})
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
    assert admin.get("/stats").json()["counts"] == before
    if field in ("type", "queue"):
        schedule = {"task": task, "every": 60}
        assert admin.put("/schedules/t", json=schedule).status_code == 422
    assert [one["name"] for one in admin.get("/schedules").json()] == ["s"]


def test_no_token_passes_the_backlog_limit_or_hides_a_task(tmp_path):
    pytest.importorskip("uvicorn")
    from dtq import APIServer

    with (
        QueueManager(tmp_path / "queue.db", backlog_limit=2) as manager,
        APIServer(manager, port=0, token=TOKENS) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for token in TOKENS:
            client.headers["Authorization"] = f"Bearer {token}"
            for task in ({"type": "a", **given} for given in RESERVED):
                for path, body in (("tasks", task), ("tasks", [task] * 200), ("flows", {"steps": {"one": task}})):
                    assert client.post(path, json=body).is_client_error, (path, body)
            assert client.post("tasks", json={"type": "a"}).status_code == 201
        assert client.post("tasks", json={"type": "a"}).status_code == 429
        shown = [task["id"] for task in client.get("tasks").json()["tasks"]]
        assert shown == [task.id for task in manager.store.find()]
        assert client.get("stats").json()["counts"]["pending"] == manager.store.stats().total == 2


def test_no_token_changes_a_tick_past_its_schedule(submitter, admin):
    tick = cron.tick_id("s")
    changes = [("DELETE", f"/tasks/{tick}"), ("POST", f"/tasks/{tick}/cancel"), ("POST", f"/tasks/{tick}/retry")]
    for method, path in changes:
        assert submitter.request(method, path).status_code == 403
        assert admin.request(method, path).status_code == 409
    for path in ("/flows/dtq/cancel", "/flows/dtq/retry"):
        assert submitter.post(path).status_code == 403
        assert admin.post(path).status_code == 404
    for path in ("/schedules/s/pause", "/queues/default/pause"):
        assert submitter.post(path).status_code == 403
    assert admin.post("/queues/dtq.schedules/pause").status_code == 422
    assert admin.get("/schedules").json()[0]["next_at"]


def test_a_filter_that_no_task_can_match_is_refused(submitter, admin):
    for path in ("/tasks?queue=two%20words", "/tasks?type=*", "/dead?queue=two%20words", "/dead/errors?type=-a"):
        assert submitter.get(path).status_code == 422, path
    assert admin.delete("/limits?queue=two%20words").status_code == 422
    assert submitter.get("/tasks?type=dtq.webhook").json()["tasks"] == []


def test_an_idempotency_key_still_adds_once(submitter):
    answers = [submitter.post("/tasks", json={"type": "a"}, headers={"Idempotency-Key": "order-7"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]


# --- in a terminal


@pytest.mark.parametrize("given", RESERVED, ids=shown)
def test_the_command_line_refuses_reserved_names(tmp_path, given):
    import json

    from typer.testing import CliRunner

    from dtq.cli import app

    field, value = next(iter(given.items()))
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"type": "a", **given}))
    commands = [["add", f"--file={tmp_path / 'tasks.jsonl'}", f"--store={tmp_path / 'queue.db'}"]]
    if field == "type":
        commands.append(["add", value, f"--store={tmp_path / 'queue.db'}"])
    elif field != "id":
        commands.append(["add", "a", f"--{field}={value}", f"--store={tmp_path / 'queue.db'}"])
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
    with QueueManager(tmp_path / "queue.db") as manager:
        assert manager.stats().total == 0

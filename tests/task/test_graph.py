"""How graphs are put together: pure data, by position, with names at the end."""

from __future__ import annotations

import pytest

from dtq import InvalidTask, Task, chain, chord, group, step
from dtq.task.graph import bind, flow_of, name_in, named


def edges(graph):
    """name -> names of its parents."""
    return {name_in("f", step["id"]): [name_in("f", parent) for parent in step["after"]] for step in bind(graph, "f")}


def a(n=1):
    return [step("a", number) for number in range(n)]


def test_a_chain_is_one_after_the_other():
    assert edges(chain(step("a"), step("b"), step("c"))) == {"0": [], "1": ["0"], "2": ["1"]}


def test_a_group_is_beside_each_other():
    assert edges(group(step("a"), step("b"))) == {"0": [], "1": []}


def test_a_chord_is_many_and_then_one_also_from_a_generator():
    chorded = chord((step("a", n) for n in range(3)), step("b"))
    assert edges(chorded) == {"0": [], "1": [], "2": [], "3": ["0", "1", "2"]}
    assert [given["payload"] for given in bind(chorded, "f")] == [0, 1, 2, None]


def test_graphs_are_parts_of_graphs():
    diamond = chain(step("a"), group(step("b"), chain(step("c"), step("d"))), step("e"))
    assert edges(diamond) == {"0": [], "1": ["0"], "2": ["0"], "3": ["2"], "4": ["1", "3"]}
    assert edges(chain(diamond, [step("x"), step("y")]))["6"] == ["4"]


def test_an_empty_group_does_not_break_a_chain():
    assert edges(chain(step("a"), group(), step("b"))) == {"0": [], "1": ["0"]}
    assert edges(chord([], step("b"))) == {"0": []}


def test_names_are_zero_filled_so_that_ids_sort_as_the_steps_do():
    ids = [given["id"] for given in bind(group(a(11)), "f")]
    assert ids == sorted(ids)
    assert (ids[0], ids[-1]) == ("f.00", "f.10")


def test_any_graph_may_be_given_by_names():
    graph = named({"load": step("a"), "b": step("b", after=["load"]), "c": step("c", after=["b", "load", "elsewhere"])})
    assert edges(graph) == {"load": [], "b": ["load"], "c": ["elsewhere", "b", "load"]}


def test_a_task_may_be_a_step_and_keeps_its_options():
    (task, other) = bind(chain(Task(type="a", id="first", priority=3), Task(type="b", after=("x",))), "f")
    assert (task.id, task.priority, other.id, other.after) == ("f.first", 3, "f.1", ("x", "f.first"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: named({"a": step("a", after=["b"]), "b": step("b", after=["a"])}), "cycle"),
        (lambda: named({"a": step("a", after=["a"])}), "cycle"),
        (lambda: chain(), "empty"),
        (lambda: named({}), "empty"),
        (lambda: chain("a", "b"), "part of a graph is 'a'"),
        (lambda: chain(3), "part of a graph is 3"),
        (lambda: group({"payload": 1}), "a step is"),
        (lambda: named({"a": 1}), "a step is 1"),
        (lambda: named({"a": step("a", after="b")}), "after is 'b'"),
        (lambda: bind(group(step("a", id="x"), step("b", id="x")), "f"), "have the name 'x'"),
        (lambda: chain(group(a(2000)), group(a(2000))), "4,000,000 dependencies"),
    ],
)
def test_what_cannot_be_a_graph_is_refused_by_name(make, words):
    with pytest.raises(InvalidTask, match=words):
        make()


def test_the_flow_of_a_task_is_told_by_its_id():
    assert (flow_of("f.0"), flow_of("0abc"), name_in("f", "f.x"), name_in("f", "g.x")) == ("f", "", "x", "g.x")


def test_a_chain_of_ten_thousand_takes_no_time_to_speak_of():
    assert len(chain(*a(10_000))) == 10_000

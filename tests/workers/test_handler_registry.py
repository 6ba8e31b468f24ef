"""Registry: which handlers it accepts, how they reach a worker, and when they are pickled again."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from functools import wraps
from pathlib import Path

import cloudpickle
import pytest

from dtq.errors import HandlerError, InvalidTask, UnknownType
from dtq.workers.handler_registry import Registry
from dtq.workers.run.loader import Handlers


def double(payload, context):
    return 2 * payload


@pytest.fixture
def main(monkeypatch):
    """A `__main__` like that of a notebook: `cell(code)` runs code in it and returns its names."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)

    def cell(code):
        exec(code, vars(module))
        return types.SimpleNamespace(**vars(module))

    return cell


def loaded(registry, type):
    handlers = Handlers()
    handlers.define(type, registry.source(type))
    return handlers.load(type).function


# --- accepted handlers ------------------------------------------------------------------------------------------------


def test_a_function_is_pickled_for_workers_and_kept_for_this_process():
    registry = Registry()
    registry.register("double", double)
    assert registry.function("double") is double
    assert registry.source("double").concurrency == 1
    assert registry.source("double").where.endswith("test_handler_registry:double")
    assert loaded(registry, "double")(21, None) == 42


def test_closures_and_lambdas_are_pickled_as_code():
    factor = 3
    registry = Registry()
    registry.register("triple", lambda payload, context: factor * payload)
    assert loaded(registry, "triple")(2, None) == 6


def test_a_function_of_main_runs_in_a_process_with_another_main(main):
    names = main("factor = 5\ndef scale(payload, context): return factor * payload")
    registry = Registry()
    registry.register("scale", names.scale)
    program = "import sys, pickle; print(pickle.load(sys.stdin.buffer)(2, None))"
    code = registry.source("scale").code
    assert subprocess.run([sys.executable, "-c", program], input=code, capture_output=True).stdout.strip() == b"10"


def test_a_file_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "handler.py").write_text("def execute(p, c): return 'file'")
    monkeypatch.chdir(tmp_path)
    registry = Registry()
    for handler in ("handler.py", Path("handler.py")):
        registry.register("file", handler)
        source = registry.source("file")
        assert (source.kind, source.where) == ("path", str(tmp_path / "handler.py"))
        assert registry.function("file") is None
        assert loaded(registry, "file")(None, None) == "file"


def test_a_name_is_imported_only_by_the_worker():
    registry = Registry()
    registry.register("name", "no_such_package.module:function")
    assert (registry.source("name").kind, registry.source("name").where) == ("name", "no_such_package.module:function")


def test_the_latest_handler_of_a_type_replaces_the_others():
    registry = Registry()
    registry.register("work", double)
    registry.register("work", "package.module:function")
    assert registry.source("work").kind == "name"
    assert registry.types() == {"work"}


# --- rejected handlers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["", "two words", 3, None, "-x"])
def test_a_type_must_be_a_name(type):
    with pytest.raises(InvalidTask, match="type"):
        Registry().register(type, double)


def test_a_missing_file_is_rejected_at_once(tmp_path):
    with pytest.raises(HandlerError, match=r"no file .*missing\.py"):
        Registry().register("work", tmp_path / "missing.py")


@pytest.mark.parametrize("handler", ["send_email", "package.module", "a:b:c", ":f", "a.:f", 3, None, ["x"]])
def test_an_invalid_handler_is_rejected_with_the_allowed_forms(handler):
    with pytest.raises(HandlerError, match=r"package\.module:function"):
        Registry().register("work", handler)


@pytest.mark.parametrize("handler", [lambda: 1, lambda payload: 1, lambda a, b, c: 1, lambda payload, *, context: 1])
def test_a_function_must_take_payload_and_context(handler):
    with pytest.raises(HandlerError, match=r"\(payload, context\)"):
        Registry().register("work", handler)


def test_the_error_of_an_unpicklable_function_names_the_values_to_blame():
    lock, factor = threading.Lock(), 2
    with pytest.raises(HandlerError, match=r"lock \(lock\)") as caught:
        Registry().register("work", lambda payload, context: (lock, factor))
    assert "factor" not in str(caught.value)


def test_nothing_is_pickled_for_pools_in_this_process():
    lock = threading.Lock()

    def handler(payload, context):
        return lock.locked()

    registry = Registry(pickles=False)
    registry.register("work", handler)
    assert registry.function("work") is handler
    assert registry.source("work").code == b""


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "2"])
def test_concurrency_is_a_whole_number_from_one(concurrency):
    with pytest.raises(HandlerError, match="concurrency"):
        Registry().register("work", double, concurrency)


def test_an_unknown_type_names_the_known_ones():
    registry = Registry()
    registry.register("work", double)
    with pytest.raises(UnknownType, match=r"'other'.*work"):
        registry.source("other")
    with pytest.raises(UnknownType):
        registry.function("other")


# --- refresh ----------------------------------------------------------------------------------------------------------


def test_a_handler_whose_cell_ran_again_is_pickled_again(main):
    registry = Registry()
    registry.register("work", main("def work(payload, context): return 1").work)
    assert registry.refresh() == []
    new = main("def work(payload, context): return 2").work
    assert registry.refresh() == ["work"]
    assert registry.function("work") is new
    assert loaded(registry, "work")(None, None) == 2
    assert registry.refresh() == []


def test_a_handler_whose_global_changed_is_pickled_again(main):
    registry = Registry()
    registry.register("work", main("factor = 2\nunused = 1\ndef work(payload, context): return factor * payload").work)
    main("unused = 2")
    assert registry.refresh() == []
    main("factor = 3")
    assert registry.refresh() == ["work"]
    assert loaded(registry, "work")(1, None) == 3


def test_a_handler_that_was_decorated_later_is_pickled_again(main):
    registry = Registry()
    registry.register("work", main("def work(payload, context): return 1").work)
    main("from functools import wraps\ndef twice(f):\n    return wraps(f)(lambda p, c: 2 * f(p, c))")
    main("@twice\ndef work(payload, context): return 1")
    assert registry.refresh() == ["work"]
    assert loaded(registry, "work")(None, None) == 2


def test_a_wrapper_around_the_same_function_does_not_replace_it(main):
    function = main("def work(payload, context): return 1").work
    registry = Registry()
    registry.register("work", function)

    @wraps(function)
    def wrapper(payload, context):
        return 2

    vars(sys.modules["__main__"])["work"] = wrapper
    assert registry.refresh() == []
    assert registry.function("work") is function


@pytest.mark.parametrize("code", ["work = 3", "del work", "from math import hypot as work", "class work: ..."])
def test_a_name_that_no_longer_means_a_function_changes_nothing(main, code):
    function = main("def work(payload, context): return 1").work
    registry = Registry()
    registry.register("work", function)
    main(code)
    assert registry.refresh() == []
    assert registry.function("work") is function


def test_imported_functions_are_not_pickled_again(monkeypatch):
    registry = Registry()
    registry.register("work", double)
    registry.register("name", "package.module:function")
    monkeypatch.setattr(cloudpickle, "dumps", lambda value: pytest.fail("pickled again"))
    assert registry.refresh() == []


def test_a_handler_that_can_no_longer_be_pickled_does_not_stop_the_others(main):
    names = main("tool = 1\ndef bad(payload, context): return tool\ndef good(payload, context): return 1")
    registry = Registry()
    registry.register("bad", names.bad)
    registry.register("good", names.good)
    new = main("import threading\ntool = threading.Lock()\ndef good(payload, context): return 2").good
    with pytest.raises(HandlerError, match="tool"):
        registry.refresh()
    assert registry.function("good") is new


def test_a_new_function_with_the_wrong_parameters_is_rejected(main):
    registry = Registry()
    registry.register("work", main("def work(payload, context): return 1").work)
    main("def work(): return 2")
    with pytest.raises(HandlerError, match="two positional"):
        registry.refresh()

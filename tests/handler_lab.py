"""What the tests of the handlers share: loading a handler from its file, and a context for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

HANDLERS = Path(__file__).parents[1] / "handlers"


def load(name: str) -> ModuleType:
    """Return the module in the file of this handler, as a worker would load it."""
    spec = importlib.util.spec_from_file_location(name, HANDLERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeContext:
    """Stands in for the context of a worker. It is cancelled after `cancel_after` reports of progress."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.reports: list[tuple[float, str]] = []
        self.cancel_after = cancel_after

    def progress(self, percent: float, note: str = "") -> None:
        self.reports.append((percent, note))

    @property
    def cancelled(self) -> bool:
        return len(self.reports) == self.cancel_after

"""guess: number boxes and a button that locks them in, before anything is measured.

    my_guess = lab.guess("duplicates", {2: "2 claimers", 4: "4 claimers"})
    lab.predict(my_guess, theory, runs)      folded away until the guess is locked in, or the reader unfolds it

A guess that was locked in stays locked when its cell runs again and when the kernel restarts. Run All and tests do not
wait for a guess.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from dtq.lab import kept, recorded

VEIL = "Your guess is not locked in. Show the figure all the same"


class Guess(Mapping[Any, float]):
    """A number for each key that the reader has guessed; empty until `is_locked`."""

    def __init__(self, name: str, labels: Mapping[Any, str]) -> None:
        self._name = f"{recorded.chapter():02} {name}"
        self._labels = dict(labels)
        self._values: dict[Any, float] = {}
        self.is_locked = False
        self.boxes = {key: widgets.Text(description=label, placeholder="a number") for key, label in labels.items()}
        for box in self.boxes.values():
            box.style.description_width, box.layout.width = "16em", "26em"
        self.button = widgets.Button(description="Lock in")
        self.button.on_click(lambda button: self.lock())
        self.said = widgets.HTML("")
        title = widgets.HTML(f"<b>Your guess: {html.escape(name)}</b>")
        self.widget = widgets.VBox([title, *self.boxes.values(), widgets.HBox([self.button, self.said])])
        self._recall()

    def __getitem__(self, key: Any) -> float:
        return self._values[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def lock(self) -> None:
        """Make the numbers in the boxes the guess, which cannot be changed later. Ignore empty boxes; refuse anything
        but numbers."""
        try:
            values = {key: float(box.value.replace(",", ".")) for key, box in self.boxes.items() if box.value.strip()}
        except ValueError as error:
            self.said.value = html.escape(f"Only numbers are allowed: {error}")
            return
        if not values:
            self.said.value = "Write at least one number."
            return
        kept.note_guess(self._name, {str(key): value for key, value in values.items()})
        self._settle(values)

    def _settle(self, values: dict[Any, float]) -> None:
        self._values, self.is_locked = values, True
        for key, box in self.boxes.items():
            box.value, box.disabled = f"{values[key]:g}" if key in values else "", True
        self.button.disabled = True
        self.said.value = "Locked in."

    def _recall(self) -> None:
        """Restore the guess that was locked in before, or the one in the committed figures."""
        known = kept.read().guesses.get(self._name) or _committed().get(self._name) or {}
        if values := {key: known[str(key)] for key in self._labels if str(key) in known}:
            self._settle(values)


def guess(name: str, labels: Mapping[Any, str]) -> Guess:
    """Show a box for each key, under its label, and a button that locks the numbers in.

    Args:
        name: What the reader guesses; unique in its chapter.
        labels: For each key (the arm of an experiment), the text beside its box.

    Returns:
        The guess: a mapping from keys to numbers, empty until it is locked in.
    """
    made = Guess(name, labels)
    asked = ", ".join(labels.values())
    twin = f"<p><em>Boxes for your guess appear here when you run the notebook: {html.escape(asked)}.</em></p>"
    display({**made.widget._repr_mimebundle_(), "text/html": twin, "text/plain": f"Your guess: {asked}"}, raw=True)
    return made


def veil(expected: object) -> str:
    """Return the text that a figure is folded behind; "" if there is no guess or it is locked in."""
    return VEIL if isinstance(expected, Guess) and not expected.is_locked else ""


def _committed() -> dict[str, dict[str, float]]:
    """Return the guesses for the committed figures, while these are recorded."""
    path = os.environ.get("DTQ_GUESSES")
    found: dict[str, dict[str, float]] = json.loads(Path(path).read_text()) if path else {}
    return found

"""guess: nothing is given away before it is locked in, and then it stays."""

from __future__ import annotations

import json
import re
import sys

import pandas as pd
import pytest

from dtq import lab
from dtq.lab import figures, recorded

LABELS = {1: "1 worker", 2: "2 workers"}
RUNS = pd.DataFrame({"arm": [1, 1, 2, 2], "value": [1.0, 1.1, 1.9, 2.1]})


@pytest.fixture
def shown(monkeypatch, tmp_path):
    displayed = []
    monkeypatch.setenv("DTQ_MINE", str(tmp_path / "mine"))
    monkeypatch.delenv("DTQ_GUESSES", raising=False)
    monkeypatch.setattr(figures, "display", lambda data, **options: displayed.append(data))
    monkeypatch.setattr(sys.modules["dtq.lab.guess"], "display", lambda data, **options: displayed.append(data))
    return displayed


def test_a_figure_is_folded_away_until_the_guess_is_locked_in(shown):
    guess = lab.guess("speed", LABELS)
    lab.predict(guess, {1: 1, 2: 2}, RUNS)
    assert shown[-1]["text/html"].startswith("<details><summary>Your guess is not locked in.")
    guess.boxes[1].value, guess.boxes[2].value = "1", "1,5"
    guess.button.click()
    assert dict(guess) == {1: 1.0, 2: 1.5}
    lab.predict(guess, {1: 1, 2: 2}, RUNS)
    assert shown[-1]["text/html"].startswith("<img")
    assert "Your guess is typically off by" in shown[-1]["text/html"]


def test_a_figure_without_a_guess_is_not_folded_away(shown):
    lab.predict(None, {1: 1, 2: 2}, RUNS)
    assert shown[-1]["text/html"].startswith("<img")


def test_a_guess_that_is_locked_in_stays_when_the_cell_runs_again(shown):
    guess = lab.guess("speed", LABELS)
    guess.boxes[2].value = "1.5"
    guess.lock()
    again = lab.guess("speed", LABELS)
    assert (again.is_locked, dict(again)) == (True, {2: 1.5})
    assert again.boxes[2].value == "1.5"
    assert all(box.disabled for box in again.boxes.values())
    assert not lab.guess("memory", LABELS).is_locked


@pytest.mark.parametrize(("text", "said"), [("many", "Only numbers are allowed"), ("", "at least one number")])
def test_what_is_no_number_is_not_locked_in(shown, text, said):
    guess = lab.guess("speed", LABELS)
    guess.boxes[1].value = text
    guess.lock()
    assert not guess.is_locked
    assert said in guess.said.value


def test_where_no_kernel_runs_the_labels_stand_in_place_of_the_boxes(shown):
    lab.guess("speed", LABELS)
    assert "1 worker, 2 workers" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "Your guess: 1 worker, 2 workers"
    assert not re.search(r"\d\.\d", shown[0]["text/html"])


def test_committed_figures_show_the_guess_that_is_written_down_for_them(shown, tmp_path, monkeypatch):
    path = tmp_path / "guesses.json"
    name = f"{recorded.chapter():02} speed"
    path.write_text(json.dumps({name: {"1": 1, "2": 3}}))
    monkeypatch.setenv("DTQ_GUESSES", str(path))
    assert dict(lab.guess("speed", LABELS)) == {1: 1, 2: 3}

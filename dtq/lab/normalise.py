"""Run notebooks and write them back in a normal form, so that another run changes only what really changed.

python -m dtq.lab.normalise notebooks/*.ipynb
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CHANGING = [
    (re.compile(r"/\S*ipykernel_\d+/\d+\.py"), "<cell>"),
    (re.compile(r"/\S*dtq-chapter-\d\d-\w+"), "<chapter>"),
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x..."),
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
]
WIDGET = "application/vnd.jupyter.widget-view+json"  # has an id that only its own kernel knows


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook with metadata, counts and outputs as they should be committed."""
    notebook.metadata = METADATA
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        cell.outputs = [_clean(output, count) for output in _merge_streams(cell.outputs)]
    return notebook


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Merge what was printed in pieces into one output for each stream."""
    merged: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type == "stream" and output.name in streams:
            streams[output.name].text += output.text
            continue
        if output.output_type == "stream":
            streams[output.name] = output
        merged.append(output)
    return merged


def _clean(output: NotebookNode, count: int) -> NotebookNode:
    if output.output_type == "stream":
        output.text = _constant(output.text)
    elif "data" in output:
        output.data.pop(WIDGET, None)
        output.metadata = {}
        for kind in {"text/plain", "text/html"} & output.data.keys():
            output.data[kind] = _constant(output.data[kind])
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def _constant(text: str) -> str:
    for pattern, replacement in CHANGING:
        text = pattern.sub(replacement, text)
    return text


def main(paths: list[str]) -> None:
    """Run the notebooks, with the guesses that committed figures show, and write them back."""
    for path in paths:
        os.environ["DTQ_GUESSES"] = str(Path(path).resolve().parent / "exercises" / "guesses.json")
        os.environ["DTQ_MINE"] = os.devnull  # committed outputs are those of a reader without any solutions
        notebook = nbformat.read(path, 4)
        client = NotebookClient(
            notebook, timeout=120, kernel_name="python3", record_timing=False, store_widget_state=False,
            resources={"metadata": {"path": str(Path(path).parent)}},
        )  # fmt: skip
        client.execute()
        nbformat.write(normalise(notebook), path)
        print(f"{path}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main(sys.argv[1:])

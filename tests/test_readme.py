"""Every ```python block of the README runs as it stands, pasted into a file in an empty folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 60  # seconds for one block


class Block(NamedTuple):
    """One fenced block: the last heading above it, the line that its code starts on, and the code."""

    heading: str
    line: int
    code: str

    @property
    def id(self) -> str:
        return f"{self.heading.lower().replace(' ', '-')}-line-{self.line}"


def blocks(markdown: str) -> Iterator[Block]:
    """The ```python blocks, except those with `<!-- not run: reason -->` on the line before the fence."""
    lines = markdown.splitlines()
    heading, fence = "", None
    for number, line in enumerate(lines):
        if fence is None and line.startswith("```"):
            fence = number
        elif line == "```":
            if lines[fence] == "```python" and not lines[fence - 1].startswith("<!-- not run: "):
                yield Block(heading, fence + 2, "\n".join(lines[fence + 1 : number]) + "\n")
            fence = None
        elif fence is None and line.startswith("#"):
            heading = line.lstrip("# ")


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` as a script in `folder`, with the repository's handlers/ beside it."""
    (folder / "handlers").symlink_to(ROOT / "handlers")
    (folder / "script.py").write_text(code)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.id) for block in blocks((ROOT / "README.md").read_text())]
)
def test_a_block_of_the_readme_runs_as_a_script(block, tmp_path):
    script = run(block.code, tmp_path)
    assert (script.returncode, script.stderr) == (0, ""), f"README.md:{block.line}\n{script.stderr}"


SAMPLE = """\
# Title
```python
# no heading
print(1)
```
## Quick start
```bash
# no heading either
pip install dtq
```
<!-- not run: it needs a server -->
```python
skipped
```
Text.

```python
print(2)
```
"""


def test_the_blocks_of_a_text_are_found_with_heading_and_line():
    assert list(blocks(SAMPLE)) == [
        Block("Title", 3, "# no heading\nprint(1)\n"),
        Block("Quick start", 18, "print(2)\n"),
    ]
    assert [block.id for block in blocks(SAMPLE)] == ["title-line-3", "quick-start-line-18"]


def test_a_block_finds_the_handlers_and_its_failure_is_seen(tmp_path):
    script = run("import os\nassert 'process_image.py' in os.listdir('handlers')\nraise SystemExit('no')", tmp_path)
    assert (script.returncode, script.stderr) == (1, "no\n")

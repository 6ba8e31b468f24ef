"""Every code block of the README runs as it stands, pasted into a file, or a shell, in an empty folder."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dtq import QueueManager
from dtq.cli.config import read

ROOT = Path(__file__).parent.parent
TIMEOUT = 60  # seconds for one block


class Block(NamedTuple):
    """One fenced block: the last heading above it, the line that its code starts on, its language, and the code."""

    heading: str
    line: int
    language: str
    code: str

    @property
    def id(self) -> str:
        return f"{self.heading.lower().replace(' ', '-')}-line-{self.line}"


def blocks(markdown: str) -> Iterator[Block]:
    """All of them, except those with `<!-- not run: reason -->` on the line before the fence."""
    lines = markdown.splitlines()
    heading, fence = "", None
    for number, line in enumerate(lines):
        if fence is None and line.startswith("```"):
            fence = number
        elif line == "```":
            if not lines[fence - 1].startswith("<!-- not run: "):
                yield Block(heading, fence + 2, lines[fence][3:], "\n".join(lines[fence + 1 : number]) + "\n")
            fence = None
        elif fence is None and line.startswith("#"):
            heading = line.lstrip("# ")


def run(code: str, folder: Path, *command: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run `code` by this command in `folder`, with the repository's handlers/ beside it."""
    (folder / "handlers").symlink_to(ROOT / "handlers")
    (folder / "script").write_text(code)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, "script"],
        cwd=folder,
        env={**os.environ, "PATH": path, "TMPDIR": str(folder)},  # where a server leaves its files
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


JOBS = "set -m\ntrap 'jobs -p | xargs -r kill || true' EXIT\n"  # as at a prompt; they end where a line fails too
BLOCKS = list(blocks((ROOT / "README.md").read_text()))


def of_language(language: str) -> list[object]:
    return [pytest.param(block, id=block.id) for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", of_language("python"))
def test_a_block_of_the_readme_runs_as_a_script(block, tmp_path):
    script = run(block.code, tmp_path, sys.executable)
    assert (script.returncode, script.stderr) == (0, ""), f"README.md:{block.line}\n{script.stderr}"


RUNNER = """\
import json
from dtq import QueueManager
for line, code in json.load(open("blocks.json")):
    print(f"README.md:{line}", flush=True)
    exec(compile(code, f"README.md:{line}", "exec"), globals())
    with QueueManager("queue.db") as manager:
        left = (manager.stats().unfinished, manager.limits(), list(manager.schedules))
    assert left == (0, [], []), left
"""


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_the_blocks_run_twice_in_any_order_in_one_kernel_and_folder(shuffled, tmp_path):
    """As the cells of a notebook do, which share what they define. No block leaves work, a limit or a schedule in the
    queue."""
    order = [(block.line, block.code) for block in BLOCKS if block.language == "python"]
    order = [*order, *order]
    seed = int(os.environ.get("DTQ_README_SEED", random.randrange(1 << 32)))
    if shuffled:
        random.Random(seed).shuffle(order)
    (tmp_path / "blocks.json").write_text(json.dumps(order))
    script = run(RUNNER, tmp_path, sys.executable, timeout=5 * TIMEOUT)
    assert script.returncode == 0, f"DTQ_README_SEED={seed}\n{script.stdout}\n{script.stderr}"


def test_what_the_rest_api_shows_may_be_done_twice_and_leaves_the_queue_as_it_was(tmp_path):
    (block,) = [block for block in BLOCKS if block.heading == "REST API" and block.language == "sh"]
    script = run(JOBS + block.code + block.code, tmp_path, "bash", "-e")
    assert script.returncode == 0, f"{script.stdout}\n{script.stderr}"
    with QueueManager(tmp_path / "queue.db") as manager:
        assert (manager.stats().unfinished, manager.limits(), list(manager.schedules)) == (0, [], [])


@pytest.mark.parametrize("block", of_language("sh"))
def test_a_block_of_the_readme_runs_in_a_shell(block, tmp_path):
    script = run(JOBS + block.code, tmp_path, "bash", "-e")
    assert script.returncode == 0, f"README.md:{block.line}\n{script.stdout}\n{script.stderr}"
    assert not re.search("ERROR task .* failed", script.stderr), f"README.md:{block.line}\n{script.stderr}"


@pytest.mark.parametrize("block", of_language("toml"))
def test_a_file_of_the_readme_describes_a_node(block, tmp_path):
    (tmp_path / "handlers").symlink_to(ROOT / "handlers")
    (tmp_path / "dtq.toml").write_text(block.code)
    config = read(tmp_path / "dtq.toml")
    assert set(config.handlers) == {"email", "analyze"}
    assert all((ROOT / "handlers" / Path(entry.handler).name).is_file() for _, entry in config.entries())


def test_no_block_is_of_a_language_that_nothing_tests():
    """A drawing and a unit of systemd are to be read."""
    assert {block.language for block in BLOCKS} == {"python", "sh", "toml", "text", "ini"}


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
        Block("Title", 3, "python", "# no heading\nprint(1)\n"),
        Block("Quick start", 8, "bash", "# no heading either\npip install dtq\n"),
        Block("Quick start", 18, "python", "print(2)\n"),
    ]
    assert [block.id for block in blocks(SAMPLE)] == ["title-line-3", "quick-start-line-8", "quick-start-line-18"]


def test_a_block_finds_the_handlers_and_its_failure_is_seen(tmp_path):
    script = run(
        "import os\nassert 'process_image.py' in os.listdir('handlers')\nraise SystemExit('no')",
        tmp_path,
        sys.executable,
    )
    assert (script.returncode, script.stderr) == (1, "no\n")

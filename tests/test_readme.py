"""Every code block of README.md and docs/ runs as it stands, pasted into a file or a shell, in an empty folder.
Every link between the pages leads somewhere."""

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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
WORDS = 1600  # at most, in the README: two screens
TIMEOUT = 60  # seconds for one block


class Block(NamedTuple):
    """A fenced block.

    Args:
        page: the name of the file.
        line: the line that the code starts on.
        language: what follows the opening fence.
        code: the lines between the fences.
    """

    page: str
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, markdown: str) -> Iterator[Block]:
    """Find all blocks, except those with `<!-- not run: reason -->` on the line before the fence."""
    lines = markdown.splitlines()
    fence = None
    for number, line in enumerate(lines):
        if fence is None and line.startswith("```"):
            fence = number
        elif line == "```":
            if not lines[fence - 1].startswith("<!-- not run: "):
                yield Block(page, fence + 2, lines[fence][3:], "\n".join(lines[fence + 1 : number]) + "\n")
            fence = None


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


JOBS = "set -m\ntrap 'jobs -p | xargs -r kill || true' EXIT\n"  # as at a prompt; they end if a line fails, too
BLOCKS = [block for page in PAGES for block in blocks(page.name, page.read_text())]


def of_language(language: str) -> list[object]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", of_language("python"))
def test_a_python_block_runs_as_a_script(block, tmp_path):
    script = run(block.code, tmp_path, sys.executable)
    assert (script.returncode, script.stderr) == (0, ""), f"{block.place}\n{script.stderr}"


RUNNER = """\
import json
from dtq import QueueManager
for place, code in json.load(open("blocks.json")):
    print(place, flush=True)
    exec(compile(code, place, "exec"), globals())
    with QueueManager("queue.db") as manager:
        left = (manager.stats().unfinished, manager.limits(), list(manager.schedules))
    assert left == (0, [], []), left
"""


@pytest.mark.parametrize(
    "shuffled", [pytest.param(False, id="in order"), pytest.param(True, id="shuffled", marks=pytest.mark.long)]
)
def test_the_blocks_run_twice_in_any_order_in_one_kernel_and_folder(shuffled, tmp_path):
    """They share what they define, as the cells of a notebook do. No block leaves work, a limit or a schedule in the
    queue."""
    order = [(block.place, block.code) for block in BLOCKS if block.language == "python"]
    order = [*order, *order]
    seed = int(os.environ.get("DTQ_README_SEED", random.randrange(1 << 32)))
    if shuffled:
        random.Random(seed).shuffle(order)
    (tmp_path / "blocks.json").write_text(json.dumps(order))
    script = run(RUNNER, tmp_path, sys.executable, timeout=5 * TIMEOUT)
    assert script.returncode == 0, f"DTQ_README_SEED={seed}\n{script.stdout}\n{script.stderr}"


def test_the_block_of_the_rest_api_may_run_twice_and_leaves_the_queue_as_it_was(tmp_path):
    (block,) = [block for block in BLOCKS if (block.page, block.language) == ("api.md", "sh")]
    script = run(JOBS + block.code + block.code, tmp_path, "bash", "-e")
    assert script.returncode == 0, f"{script.stdout}\n{script.stderr}"
    with QueueManager(tmp_path / "queue.db") as manager:
        assert (manager.stats().unfinished, manager.limits(), list(manager.schedules)) == (0, [], [])


@pytest.mark.parametrize("block", of_language("sh"))
def test_a_shell_block_runs_in_a_shell(block, tmp_path):
    script = run(JOBS + block.code, tmp_path, "bash", "-e")
    assert script.returncode == 0, f"{block.place}\n{script.stdout}\n{script.stderr}"
    assert not re.search("ERROR task .* failed", script.stderr), f"{block.place}\n{script.stderr}"


@pytest.mark.parametrize("block", of_language("toml"))
def test_a_toml_block_describes_a_node(block, tmp_path):
    (tmp_path / "handlers").symlink_to(ROOT / "handlers")
    (tmp_path / "dtq.toml").write_text(block.code)
    config = read(tmp_path / "dtq.toml")
    assert set(config.handlers) == {"email", "analyze"}
    assert all((ROOT / "handlers" / Path(entry.handler).name).is_file() for _, entry in config.entries())


def test_no_block_is_of_a_language_that_nothing_tests():
    """The unit of systemd is only there to read."""
    assert {block.language for block in BLOCKS} == {"python", "sh", "toml", "ini"}


def prose(markdown: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: its headings, as GitHub writes them in addresses."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return the relative links and pictures of a page that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if path.startswith("/") or not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_link_between_the_pages_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_link_to_a_page_or_a_heading_that_is_not_there_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One thing\n[a](#one-thing) [b](#other) [c](page.md#one-thing) [d](gone.md) [e](https://x.y)")
    assert broken_links(page) == ["#other", "gone.md"]


def test_every_page_of_the_documentation_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#\s]+)", PAGES[0].read_text()))
    assert {f"docs/{page.name}" for page in PAGES[1:]} - linked == set()


def test_the_readme_is_two_screens_long():
    assert len(PAGES[0].read_text().split()) < WORDS


def test_every_picture_has_words_and_is_small():
    pictures = [(page, *found) for page in PAGES for found in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page.read_text())]
    assert len(pictures) >= 4
    for page, words, path in pictures:
        assert len(words) > 20, path
        assert (page.parent / path).stat().st_size < 250_000, path


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


def test_the_blocks_of_a_page_are_found_with_page_and_line():
    assert list(blocks("sample.md", SAMPLE)) == [
        Block("sample.md", 3, "python", "# no heading\nprint(1)\n"),
        Block("sample.md", 8, "bash", "# no heading either\npip install dtq\n"),
        Block("sample.md", 18, "python", "print(2)\n"),
    ]
    assert [block.place for block in blocks("sample.md", SAMPLE)] == ["sample.md:3", "sample.md:8", "sample.md:18"]


def test_a_block_finds_the_handlers_and_its_failure_is_seen(tmp_path):
    script = run(
        "import os\nassert 'process_image.py' in os.listdir('handlers')\nraise SystemExit('no')",
        tmp_path,
        sys.executable,
    )
    assert (script.returncode, script.stderr) == (1, "no\n")

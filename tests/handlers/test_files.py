"""Handlers that take a path touch only files below the directories that the node names in DTQ_FILES."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from handler_lab import HANDLERS, load

from dtq import TaskQueue, files
from dtq.errors import TaskFailed
from dtq.files import reading, replacing

SECRET = "admin-token-1234"
WORDS = r"allowed: regular files below .* \(the variable DTQ_FILES of this node lists these directories"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An allowed directory `tmp_path/home`, which is the working directory, with a secret beside it."""
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (home / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "home-too").mkdir()
    (tmp_path / "home-too" / "secret").write_text(SECRET + "\n")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "loop").symlink_to("loop")
    (home / "away").symlink_to(tmp_path)
    os.mkfifo(home / "pipe")
    monkeypatch.chdir(home)
    monkeypatch.delenv("DTQ_FILES", raising=False)
    return home


def read(path):
    with reading(path) as file:
        return file.read()


def write(path, data=b"new"):
    with replacing(path) as file:
        file.write(data)


OUTSIDE = [
    "../secret", "{tmp}/secret", "link", "away/secret", "inner/../../secret", "away/home/../secret",
    "{tmp}/home-too/secret", "/etc/passwd", "/proc/self/environ", "/dev/zero", "..", "/", "away", "{tmp}/home/link",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_outside_is_neither_read_nor_written(path, tmp_path):
    path = path.format(tmp=tmp_path)
    with pytest.raises(PermissionError, match=WORDS):
        read(path)
    if path not in ("..", "/"):  # these name no file at all
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(PermissionError, match=WORDS):
            write(path)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "secret").read_text() == SECRET + "\n"


@pytest.mark.parametrize("path", ["pipe", "inner", "socket", ".", "", "inner/", "loop"])
def test_only_regular_files_are_opened(path, home):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket")
        with pytest.raises(OSError, match=f"{WORDS}|symbolic links"):
            read(path)
        with pytest.raises(OSError, match=WORDS):
            write(path)
    assert (home / "pipe").is_fifo()


def test_a_file_below_the_directory_is_read_and_replaced_by_any_of_its_names(home, tmp_path):
    (home / "near").symlink_to("data.csv")
    for path in ("data.csv", home / "data.csv", "inner/../data.csv", "away/home/data.csv", "near"):
        assert read(path) == b"a,b\n1,2\n"
    for number, path in enumerate(("data.csv", home / "inner" / "x", "away/home/inner/y", "inner/../data.csv")):
        write(path, b"%d" % number)
        assert read(path) == b"%d" % number
    assert not list(home.rglob("*.part"))


@pytest.mark.parametrize("path", ["no", "no/such", "inner/no"])
def test_the_error_about_a_missing_file_names_its_whole_path(path):
    with pytest.raises(FileNotFoundError) as caught:
        read(path)
    assert caught.value.filename == path


def test_several_named_directories_are_allowed_instead_of_the_working_directory(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DTQ_FILES", os.pathsep.join([str(tmp_path / "home-too"), "", str(home / "inner")]))
    assert read(tmp_path / "home-too" / "secret") == f"{SECRET}\n".encode()
    write("inner/x")
    with pytest.raises(PermissionError, match=r"path 'data.csv' leads elsewhere; allowed: .*home-too, .*inner \("):
        read("data.csv")


def test_a_directory_named_by_a_link_is_the_target_of_the_link(home, tmp_path, monkeypatch):
    (tmp_path / "alias").symlink_to(home)
    monkeypatch.setenv("DTQ_FILES", str(tmp_path / "alias"))
    assert read(home / "data.csv") == read(tmp_path / "alias" / "data.csv")


def test_a_folder_that_becomes_a_link_after_the_check_is_not_followed(home, tmp_path, monkeypatch):
    """The folder becomes a link after the path was resolved."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text(SECRET)
    (home / "inner" / "x").write_text("mine")
    resolve = os.path.realpath

    def exchanged(path, **options):
        real = resolve(path, **options)
        if "inner" in os.fspath(path) and not (home / "inner").is_symlink():
            (home / "inner").rename(home / "moved")
            (home / "inner").symlink_to(outside)
        return real

    monkeypatch.setattr(files.os.path, "realpath", exchanged)
    with pytest.raises(OSError, match="inner/x"):
        read("inner/x")
    (home / "inner").unlink()
    (home / "moved").rename(home / "inner")
    with pytest.raises(OSError, match="inner/x"):
        write("inner/x")
    assert [path.read_text() for path in outside.iterdir()] == [SECRET]


def test_while_a_folder_turns_into_a_link_and_back_nothing_outside_is_touched(home, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text(SECRET)
    (home / "inner" / "x").write_text("mine")
    ended = threading.Event()

    def turn():
        while not ended.is_set():
            (home / "inner").rename(home / "moved")
            (home / "inner").symlink_to(outside)
            (home / "inner").unlink()
            (home / "moved").rename(home / "inner")

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        seen = set()
        for _ in range(2000):
            for act in (lambda: read("inner/x"), lambda: write("inner/y")):
                try:
                    seen.add(act())
                except OSError as error:
                    seen.add(type(error).__name__)
    finally:
        ended.set()
        thread.join()
    assert seen <= {b"mine", None, "FileNotFoundError", "PermissionError", "NotADirectoryError", "OSError"}
    assert [path.name for path in outside.iterdir()] == ["x"]
    assert (outside / "x").read_text() == SECRET


def test_a_refused_path_leaves_no_descriptor_open(home, tmp_path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else pytest.skip("needs /proc")
    for path in [*(path.format(tmp=tmp_path) for path in OUTSIDE), "pipe", "no/such", "data.csv", "loop"]:
        for act in (read, write):
            with suppress(OSError):
                act(path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- the handlers


class Context:
    cancelled = False

    def progress(self, percent, note=""):
        pass


DESCRIBE = {"op": "describe", "columns": ["no such"]}


@pytest.mark.parametrize("source", ["../secret", "link", "/etc/passwd", "pipe", "away/secret"])
def test_analyze_data_reads_nothing_outside(source):
    with pytest.raises(PermissionError, match=WORDS):
        load("analyze_data").execute({"source": source, "operations": [DESCRIBE]}, Context())


@pytest.mark.parametrize("target", ["../out.png", "link.png", "away/out.png", "{tmp}/home-too/out.png"])
def test_process_image_reads_and_writes_nothing_outside(target, home, tmp_path):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(home / "in.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "out.png")
    (home / "link.png").symlink_to(tmp_path / "out.png")
    before = (tmp_path / "out.png").read_bytes()
    target = target.format(tmp=tmp_path)
    for payload in ({"source": "in.png", "target": target}, {"source": target, "target": "new.png"}):
        with pytest.raises(PermissionError, match=WORDS):
            load("process_image").execute({**payload, "operations": []}, Context())
    assert (tmp_path / "out.png").read_bytes() == before
    assert not (home / "new.png").exists()


@pytest.mark.parametrize(
    ("content", "change"),
    [
        (SECRET, {}),
        (f"{SECRET}\n1\n", {}),
        (f"a\n{SECRET}\n", {"dates": ["a"]}),
        (f"a\n{SECRET}\n", {"operations": [{"op": "correlate", "columns": ["a", "b"], "method": "pearson"}]}),
        (f"a,b\n{SECRET},1\n", {"operations": [{"op": "correlate", "columns": ["a", "b"], "method": "pearson"}]}),
        (f"a,b\n{SECRET},1\n2\n3,4,5,6\n", {}),
        (f"{SECRET}\n".encode("utf-16"), {}),
        (f"a,b\n1,{SECRET}\n1,2\n", {"operations": [{"op": "aggregate", "by": ["a"], "values": {"b": ["mean"]}}]}),
        (f"\"{SECRET}\n", {}),
    ],
)  # fmt: skip
def test_no_error_of_analyze_data_quotes_the_file(content, change, home, monkeypatch):
    """The test looks at all that a task keeps of an error: message and traceback, of every attempt."""
    (home / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with TaskQueue("memory:", {"analyze": HANDLERS / "analyze_data.py"}, executor="inline") as queue:
        payload = {"source": "x.csv", "operations": [DESCRIBE], **change}
        handle = queue.add("analyze", payload, max_attempts=1)
        with pytest.raises(TaskFailed):
            handle.result(60)
        assert SECRET not in repr(handle.task)
        assert "x.csv" in repr(handle.task)


def test_workers_obey_the_variable_of_their_node(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DTQ_FILES", str(home))
    payload = {"operations": [{"op": "describe", "columns": ["a"]}]}
    with TaskQueue(tmp_path / "q.db", {"analyze": HANDLERS / "analyze_data.py"}, pool_size=1) as queue:
        assert queue.add("analyze", {"source": str(home / "data.csv"), **payload}).result(60)["rows"] == 1
        with pytest.raises(TaskFailed, match="leads elsewhere"):
            queue.add("analyze", {"source": str(tmp_path / "secret"), **payload}, max_attempts=1).result(60)


def test_the_lab_allows_the_chapter_and_the_working_directory(home):
    code = "from dtq import files, lab; here = lab.start(0); print(); print(*files.directories(), here.path, sep='\\n')"
    pytest.importorskip("matplotlib")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=home).stdout
    chapter, working, path = told.splitlines()[-3:]
    assert (chapter, working) == (os.path.realpath(path), str(home))

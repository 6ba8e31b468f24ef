"""Binder: the image that would be built, what is installed in it, and that it is enough for every chapter.

pytest -m hourly tests/lab/test_binder.py    also installs the pinned set again, and runs the chapters on one core
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import psutil
import pytest
from browser import JupyterLab

from dtq import lab

ROOT = Path(__file__).parents[2]
BINDER = ROOT / "binder"
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPO2DOCKER = Path(sys.executable).with_name("jupyter-repo2docker")
GIB = 1 << 30
RUN = """
import sys, nbformat
from nbclient import NotebookClient
for path in sys.argv[1:]:
    NotebookClient(nbformat.read(path, 4), timeout=300, resources={"metadata": {"path": "notebooks"}}).execute()
    print(path, flush=True)
"""


def pins():
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (BINDER / "constraints.txt").read_text(), re.M))


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_that_the_workbook_needs_is_pinned_and_no_address_is_written_down():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*extras["dependencies"], *extras["optional-dependencies"]["lab"]]
    names = {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted} - {"dtq"}
    assert names <= {canonical(name) for name in pins()}
    assert not any("://" in file.read_text() for file in BINDER.iterdir())


@pytest.mark.skipif(not REPO2DOCKER.exists(), reason="jupyter-repo2docker is not installed")
def test_the_image_gets_python_311_and_the_workbook():
    done = subprocess.run(
        [REPO2DOCKER, "--no-build", "--debug", "."], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    dockerfile = done.stdout + done.stderr
    assert done.returncode == 0, dockerfile[-2000:]
    assert 'pip install --no-cache-dir -r "binder/requirements.txt"' in dockerfile
    assert "environment-2epy-2d3-2e11" in dockerfile  # its name for the file with the environment of Python 3.11


# --- pages behind the hub


def test_the_address_of_a_page_is_ours_or_the_hubs(monkeypatch):
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    assert lab.url(3000) == "http://127.0.0.1:3000/"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert lab.url(3000) == "/user/ada/proxy/3000/"
    for port in (0, 65536, "3000", True):
        with pytest.raises(ValueError, match="allowed: a whole number from 1 to 65,535"):
            lab.url(port)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"you asked for {self.path}".encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def page():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.long
def test_a_page_on_a_port_of_ours_is_seen_through_the_jupyter_server(page, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/")
    address = lab.url(page)
    monkeypatch.undo()  # no hub runs this server
    with JupyterLab(tmp_path, tmp_path / "home") as server:
        assert server.get(address.lstrip("/") + "stats") == b"you asked for /stats"


# --- the real thing: minutes


@pytest.mark.hourly
def test_the_pinned_set_runs_every_chapter_on_one_core_within_a_gigabyte(tmp_path):
    checkout, venv = tmp_path / "checkout", tmp_path / "venv"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", "*.egg-info", ".*cache"))
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin" / "pip", "install", "--quiet", "-r", "binder/requirements.txt", "nbclient"]
    subprocess.run(install, cwd=checkout, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PY")} | {"DTQ_FAST": "1"}
    command = [venv / "bin" / "python", "-c", RUN, *(f"notebooks/{path.name}" for path in CHAPTERS)]
    one_core = functools.partial(os.sched_setaffinity, 0, {min(os.sched_getaffinity(0))})
    with subprocess.Popen(
        command, cwd=checkout, env=environment, preexec_fn=one_core, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        peak = peak_memory(process)
        assert process.stdout.read().count("notebooks/") == len(CHAPTERS)
    print(json.dumps({"chapters": len(CHAPTERS), "peak_mb": peak // 10**6}))
    assert process.returncode == 0
    assert peak < GIB


def peak_memory(process):
    """Return the highest memory use of the process and its descendants together, with shared pages counted once."""
    peak = 0
    while process.poll() is None:
        total = 0
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                total += each.memory_full_info().pss
            except psutil.Error:  # it has ended meanwhile
                continue
        peak = max(peak, total)
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    return peak

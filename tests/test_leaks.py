"""The leak check of conftest.py finds each kind of leak."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from conftest import inventory


def new_items(before: set[str], place: Path) -> str:
    return ", ".join(sorted(inventory(place) - before))


def test_a_thread_a_process_a_socket_and_a_file_are_found(temporary_files):
    place = temporary_files
    before = inventory(place)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="lingering")
    thread.start()
    assert "thread lingering" in new_items(before, place)
    stop.set()
    thread.join()
    with subprocess.Popen(["sleep", "60"]) as process:
        if Path("/proc/self/task").exists():
            assert f"process {process.pid}" in new_items(before, place)
        process.kill()
    with socket.socket() as sock:
        if Path("/proc/self/fd").exists():
            assert f"descriptor {sock.fileno()} of socket:" in new_items(before, place)
    with tempfile.NamedTemporaryFile() as file:
        assert f"temporary file {Path(file.name).name}" in new_items(before, place)
    assert new_items(before, place) == ""


def test_an_inventory_takes_less_than_20_ms(temporary_files):
    began = time.perf_counter()
    for _ in range(20):
        inventory(temporary_files)
    assert (time.perf_counter() - began) / 20 < 0.02

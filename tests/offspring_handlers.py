"""Handlers that start processes, and end in every possible way."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HELPER: list[subprocess.Popen[bytes]] = []
SLEEP = ["sleep", "1000"]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)"


def setup():
    HELPER.append(subprocess.Popen(SLEEP))


def teardown():
    while HELPER:
        helper = HELPER.pop()
        helper.kill()
        helper.wait()


def helper(payload, context):
    time.sleep(0.01)
    return HELPER[0].pid


def start(how):
    """Start a process in one of many ways. Return the ids of the processes that now run."""
    if how == "popen":
        return [subprocess.Popen(SLEEP).pid]
    if how == "session":
        return [subprocess.Popen(SLEEP, start_new_session=True).pid]
    if how == "stubborn":
        child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
        child.stdout.read(1)
        return [child.pid]
    if how == "shell":
        shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
        return [shell.pid, int(shell.stdout.readline())]
    if how == "orphan":
        shell = subprocess.Popen(["sh", "-c", "setsid sleep 1000 >&2 & echo $!"], stdout=subprocess.PIPE)
        pid = int(shell.stdout.readline())
        shell.wait()
        return [pid]
    if how == "fork":
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=[1000])
        process.start()
        return [process.pid]
    raise ValueError(how)


def run(payload, context):
    """Start processes, write their ids to a file, and end as the payload asks. The `finally` writes a file too."""
    try:
        pids = [pid for how in payload["start"] for pid in start(how)]
        note(payload, "pids", " ".join(map(str, [*pids, os.getpid()])))
        return end(payload["end"], pids)
    finally:
        note(payload, "finally", "ran")


def end(how, pids):
    if how == "return":
        return pids
    if how == "raise":
        raise ValueError("no")
    if how == "exit":
        os._exit(3)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hold":
        sum(range(10**13))
    if how == "wait for it":
        with subprocess.Popen(SLEEP) as child:
            child.wait()
    if how == "poll":  # for threads, which are interrupted only while they run Python code
        while True:
            time.sleep(0.01)
    time.sleep(60)
    return None


async def run_async(payload, context):
    try:
        pids = [pid for how in payload["start"] for pid in start(how)]
        note(payload, "pids", " ".join(map(str, [*pids, os.getpid()])))
        await asyncio.sleep(0 if payload["end"] == "return" else 60)
    finally:
        note(payload, "finally", "ran")


POOLS = {}


def use_pool(payload, context):
    """Use a pool that the first attempt creates and later attempts use again."""
    if payload["kind"] not in POOLS:
        if payload["kind"] == "executor":
            POOLS["executor"] = ProcessPoolExecutor(2)
        else:
            POOLS["pool"] = multiprocessing.get_context("fork").Pool(2)
    pool = POOLS[payload["kind"]]
    run = pool.submit if payload["kind"] == "executor" else lambda function, *args: pool.apply_async(function, args)
    if not payload["seconds"]:
        result = run(os.getpid)
        return result.result() if payload["kind"] == "executor" else result.get()
    run(time.sleep, payload["seconds"])
    time.sleep(payload["seconds"])
    return None


def note(payload, name, text):
    """Write a file atomically."""
    path = Path(payload["place"], name)
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)

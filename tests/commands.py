"""The `dtq` command for tests: in its own process, or on one store within this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from dtq import TaskQueue
from dtq.cli import app

WAIT = 60.0  # seconds after which a test gives up
MAIN = "from dtq.cli import app; app(prog_name='dtq')"


def start(*arguments, code=MAIN, **environment):
    """Start the command in its own process."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(*arguments, **options):
    """Run the command in its own process. Return (exit code, stdout, stderr)."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=WAIT)
    return process.returncode, out, err


TYPES = {"double": lambda payload, context: 2 * payload, "fail": lambda payload, context: 1 / 0}


class Store(str):
    """The URL of a store, with the command on it."""

    def dtq(self, command, *arguments, input=None):
        result = CliRunner().invoke(app, [command, "--store", self, *arguments], input=input, env={"COLUMNS": "160"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def ok(self, command, *arguments, input=None):
        """Run a command that must succeed. Return its stdout."""
        result = self.dtq(command, *arguments, input=input)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def tasks(self, *arguments):
        return [json.loads(line) for line in self.ok("list", "--json", "--limit", "100000", *arguments).splitlines()]

    def task(self, id):
        return json.loads(self.ok("get", id, "--json"))

    def work(self):
        """Run all tasks of the store."""
        with TaskQueue(self, TYPES, pool_size=2, executor="thread") as queue:
            queue.join(WAIT)

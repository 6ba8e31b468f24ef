"""The API against its own document: whatever is sent, it answers as the document says; and clients can be made of it.

`pytest -m hourly tests/api/test_api_schema.py` tries some thousand requests instead of some hundred.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading

import pytest

pytest.importorskip("starlette")

from sizes import long_and_hourly

from dtq import APIServer, QueueManager, TaskQueue
from dtq.api.document import describe
from dtq.api.operations import OPERATIONS

# What a schema cannot say (two fields of which one is needed, a time zone), is 422 all the same.
CONFIG = "".join(
    f"""
[[operations]]
include-name = "{operation}"
checks.positive_data_acceptance.enabled = false
"""
    for operation in ("PUT /schedules/{name}", "PUT /limits", "POST /dead/redrive", "POST /dead/purge")
)
CONFIG += """
[[operations]]
include-name = "GET /tasks/{task_id}/wait"
parameters = { "query.timeout" = 0.5 }
"""
TOKEN = "a-token-for-everything"
SLOW = 30  # seconds for one example of each operation


def double(payload, context):
    return 2 * payload["n"]


@long_and_hourly("examples", 3, 120)
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_whatever_is_sent_is_answered_as_the_document_says(tmp_path, examples):
    """Every operation but /events, which does not end. No answer is a 5xx, each fits its schema, and what the schema
    does not allow is refused."""
    with QueueManager(tmp_path / "queue.db") as manager, APIServer(manager, port=0, token=TOKEN) as api:
        manager.add_many({"type": "some", "id": f"task-{n}"} for n in range(20))
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}openapi.json", "--no-color",
            f"--header=Authorization: Bearer {TOKEN}", "--exclude-path=/events", "--exclude-path=/health",
            f"--max-examples={examples}", "--seed=1",
        ]  # fmt: skip
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60 + SLOW * examples, check=False
        )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    tried = int(re.search(r"([\d,]+) generated", result.stdout)[1].replace(",", ""))
    print(tried, "requests")
    assert tried > 20 * examples


@pytest.fixture(scope="module")
def document():
    return describe(OPERATIONS)


def operations(document):
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_every_problem_is_described_as_it_is_sent(document):
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operation in operations(document):
        problems = {status: answer for status, answer in operation["responses"].items() if status[0] in "45"}
        assert problems.keys() >= {"400", "403", "408", "422", "431", "500", "503"}
        assert (problems.keys() >= {"413", "415"}) == ("requestBody" in operation)
        assert ("404" in problems) == any(parameter["in"] == "path" for parameter in operation["parameters"])
        assert (problems.keys() >= {"401", "429"}) == bool(operation["security"])
        assert [answer["content"] for answer in problems.values()] == [content] * len(problems)


def test_a_field_of_a_request_is_required_only_if_it_has_no_default(document):
    """Generators, such as openapi-typescript, take a property with a default for one that is always there."""
    schemas = document["components"]["schemas"]
    names = set(re.findall(r"schemas/(\w+)", str([one.get("requestBody") for one in operations(document)])))
    while more := set(re.findall(r"schemas/(\w+)", str([schemas[name] for name in names]))) - names:
        names |= more
    assert names > {"NewTask", "NewWebhook", "NewFlow", "NewStep", "NewSchedule", "NewLimit", "Redrive", "Purge"}
    assert [name for name in names if "'default':" in str(schemas[name])] == []
    assert schemas["NewTask"]["required"] == ["type"]
    assert schemas["NewTask"]["properties"]["max_attempts"]["description"] == "default: 3"


@pytest.mark.skipif(
    importlib.util.find_spec("openapi_python_client") is None, reason="openapi-python-client is not installed"
)
def test_a_client_made_from_the_document_adds_and_awaits_a_task(tmp_path):
    with (
        TaskQueue(tmp_path / "queue.db", {"double": double}, pool_size=1) as queue,
        APIServer(queue, port=0, token=TOKEN) as api,
    ):
        made = subprocess.run(
            [sys.executable, "-m", "openapi_python_client", "generate", f"--url={api.url}openapi.json", "--meta=none",
             "--output-path=made_client"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        script = f"""
from made_client.client import AuthenticatedClient
from made_client.api.default import add_tasks, wait_for_task
from made_client.models import NewTask

with AuthenticatedClient(base_url={api.url.rstrip("/")!r}, token={TOKEN!r}) as client:
    accepted = add_tasks.sync(client=client, body=NewTask.from_dict({{"type": "double", "payload": {{"n": 21}}}}))
    task = wait_for_task.sync(accepted.id, client=client, timeout=30)
    assert (task.status, task.result) == ("completed", 42), task
"""
        used = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert used.returncode == 0, used.stderr


def test_no_thread_is_left_when_a_server_has_stopped(tmp_path):
    before = set(threading.enumerate())
    with QueueManager(tmp_path / "queue.db") as manager, APIServer(manager, port=0):
        pass
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("dtq")] == []

"""The email handler against a real SMTP server on this machine."""

from __future__ import annotations

import email
import importlib.util
import socket
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller

from dtq import TaskQueue
from dtq.errors import TaskFailed

FILE = Path(__file__).parent.parent / "handlers" / "send_email.py"
MAIL = {"to": "ada@example.org", "subject": "Grüße", "text": "How are you?\n"}


class Sink:
    """Keeps what arrives; refuses mail to nobody@example.org."""

    def __init__(self) -> None:
        self.mails: list[email.message.Message] = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == "nobody@example.org":
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def sink(monkeypatch):
    controller = Controller(Sink(), hostname="127.0.0.1", port=free_port())
    controller.start()
    monkeypatch.setenv("DTQ_SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("DTQ_SMTP_PORT", str(controller.port))
    yield controller.handler
    controller.stop()


@pytest.fixture
def handler():
    spec = importlib.util.spec_from_file_location("send_email", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Context:
    task_id = "t1"

    def __init__(self) -> None:
        self.seen: list[float] = []

    def progress(self, percent, note=""):
        self.seen.append(percent)


def test_a_mail_arrives_as_it_was_written(handler, sink):
    context = Context()
    told = handler.execute(
        MAIL | {"to": ["Ada <ada@example.org>", "bob@example.org"], "from": "me@example.org"}, context
    )
    (mail,) = sink.mails
    assert (mail["Subject"], mail["From"], mail.get_content().split()) == (
        "Grüße",
        "me@example.org",
        ["How", "are", "you?"],
    )
    assert mail["To"] == "Ada <ada@example.org>, bob@example.org"
    assert told["message_id"] == mail["Message-ID"] == "<t1@dtq>"
    assert context.seen == [25, 50, 100]


def test_a_repeated_attempt_has_the_same_message_id(handler, sink):
    for _ in range(2):
        handler.execute(MAIL, Context())
    assert {mail["Message-ID"] for mail in sink.mails} == {"<t1@dtq>"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"to": "ada"}, "address is 'ada'; allowed"), ({"to": []}, "to is"), ({"to": ["a@b.c"] * 101}, "1 to 100"),
        ({"to": "a@b.c\nBcc: x@y.z"}, "address is"), ({"to": "a@b.c, x@y.z"}, "address is"), ({"to": None}, "is None"),
        ({"subject": "a\nBcc: x@y.z"}, "subject is"), ({"subject": 3}, "subject is 3; allowed: text"),
        ({"text": None}, "text is None"), ({"host": "evil"}, "host is 'evil'; allowed: only the fields"),
        ({"from": "nobody"}, "address is 'nobody'"),
    ],
)  # fmt: skip
def test_a_payload_that_can_never_work_is_refused_by_name(handler, sink, change, words):
    with pytest.raises(ValueError, match="allowed") as caught:
        handler.execute(MAIL | change, Context())
    assert words in str(caught.value)
    assert sink.mails == []


def test_a_server_that_is_not_there_or_refuses_fails_the_attempt(handler, sink, monkeypatch):
    with pytest.raises(handler.smtplib.SMTPException):
        handler.execute(MAIL | {"to": "nobody@example.org"}, Context())
    monkeypatch.setenv("DTQ_SMTP_PORT", str(free_port()))
    with pytest.raises(ConnectionRefusedError):
        handler.execute(MAIL, Context())


def test_mails_go_out_once_each_through_the_queue(sink, tmp_path):
    with TaskQueue(tmp_path / "q.db", {"email": FILE}, pool_size=2) as queue:
        handles = queue.add_many({"type": "email", "payload": MAIL | {"subject": str(n)}} for n in range(20))
        bad = queue.add("email", MAIL | {"to": "nobody@example.org"}, max_attempts=2, retry_delay=0)
        queue.join(30)
        with pytest.raises(TaskFailed, match="SMTPRecipientsRefused"):
            bad.result()
    assert sorted(int(mail["Subject"]) for mail in sink.mails) == list(range(20))
    assert {mail["Message-ID"] for mail in sink.mails} == {f"<{handle.id}@dtq>" for handle in handles}

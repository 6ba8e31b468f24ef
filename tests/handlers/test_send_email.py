"""The email handler against a real SMTP server on this machine."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import email
import email.policy
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from handler_lab import load

from dtq import TaskQueue
from dtq.errors import TaskFailed

FILE = Path(__file__).parents[2] / "handlers" / "send_email.py"
MAIL = {"to": "ada@example.org", "subject": "Grüße", "text": "How are you?\n"}
LETTER = {"to": "ada@example.org", "subject": "Order {{ n }}", "template": "Dear {{ name }},\nbye\n"}
DATA = {"n": 7, "name": "Ada & Bob"}
ENDLESS = "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{{ 'x' * 99 }}{% endfor %}{% endfor %}"
WAIT = 60.0


class Sink:
    """Keeps the mails that arrive; refuses mail to nobody@example.org."""

    def __init__(self) -> None:
        self.mails: list[email.message.Message] = []
        self.recipients: list[str] = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == "nobody@example.org":
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        self.recipients.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


def message_id(task_id: str) -> str:
    return f"<{hashlib.sha256(task_id.encode()).hexdigest()[:32]}@dtq>"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(sink, monkeypatch, **options):
    """Serve this sink over SMTP, and point the environment at it."""
    controller = Controller(sink, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    monkeypatch.setenv("DTQ_SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("DTQ_SMTP_PORT", str(controller.port))
    try:
        yield sink
    finally:
        controller.stop()


@pytest.fixture
def sink(monkeypatch):
    with serving(Sink(), monkeypatch) as sink:
        yield sink


@pytest.fixture
def handler():
    return load("send_email")


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
    assert told["message_id"] == mail["Message-ID"] == message_id("t1")
    assert context.seen == [25, 50, 100]


def test_a_repeated_attempt_has_the_same_message_id(handler, sink):
    for _ in range(2):
        handler.execute(MAIL, Context())
    assert {mail["Message-ID"] for mail in sink.mails} == {message_id("t1")}


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


EVIL = "=?utf-8?q?a=0D=0ABcc:_evil=40x.org?="
HEADERS = ["From", "To", "Subject", "Message-ID", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject", EVIL),
        ("subject", f"Hello {EVIL} you"),
        ("subject", "=?utf-8?b?YQ0KQmNjOiBldmlsQHgub3Jn?="),
        ("subject", "=?utf-8?q?Caf=C3=A9?="),
        ("to", f"{EVIL} <ada@example.org>"),
        ("to", f"{EVIL}@example.org"),
        ("from", f"{EVIL} <me@example.org>"),
        ("to", "=?utf-8?q?Bob?= <ada@example.org>"),
    ],
)
def test_an_encoded_word_cannot_become_a_header_or_another_text(handler, sink, field, value):
    with pytest.raises(ValueError, match=re.escape(value[:30])):
        handler.execute(MAIL | {field: value}, Context())
    if field == "subject":
        with pytest.raises(ValueError, match="subject"):
            handler.execute(MAIL | {"html": "<p>", "subject": "{{ s }}", "data": {"s": value}}, Context())
    assert sink.mails == []


@pytest.mark.long
def test_any_subject_arrives_as_given_and_adds_no_header(handler):
    """Compose subjects at random from pieces that have a meaning in a header; check the message as it would be sent."""
    pieces = [
        "=?utf-8?q?",
        "=?utf-8?b?",
        "?=",
        "=0D=0A",
        "DQo=",
        "Bcc: e@x.org",
        "_",
        " ",
        "  ",
        "ü",
        "😀",
        "<",
        "x" * 70,
        ":",
    ]
    accepted = 0
    for seed in range(1500):
        subject = "".join(random.Random(seed).choices(pieces, k=1 + seed % 9)).strip()
        try:
            message = handler.compose(handler.check_payload(MAIL | {"subject": subject}), "t1")
        except ValueError:
            continue
        accepted += 1
        sent = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
        assert (sent.keys(), sent["Subject"].split()) == (HEADERS, subject.split()), (seed, subject)
    assert accepted > 500


@pytest.mark.parametrize(
    "to",
    [
        "a@b.org;c@d.org", "a@b.org c@d.org", "<a@b.org> <c@d.org>", "friends: a@b.org;", "friends: a@b.org, c@d.org;",
        "undisclosed:;", "a b@c.org", "a@b@c.org", "a@b.org>", "@b.org", "a@", "",
    ],
)  # fmt: skip
def test_anything_but_one_address_is_refused(handler, sink, to):
    for recipients in (to, ["ada@example.org", to]):
        with pytest.raises(ValueError, match="allowed: one such as"):
            handler.execute(MAIL | {"to": recipients}, Context())
    assert sink.mails == []


def test_every_recipient_that_is_reported_gets_the_mail(handler, sink):
    to = [
        "Ada <ada@example.org>",
        "A. Lovelace <bob@example.org>",
        '"O\'Hara; Jo" <jo@example.org>',
        "<eve@example.org>",
    ]
    told = handler.execute(MAIL | {"to": to}, Context())
    assert told["to"] == to
    assert sink.recipients == ["ada@example.org", "bob@example.org", "jo@example.org", "eve@example.org"]


def test_tasks_whose_ids_differ_at_their_end_have_different_message_ids(handler, sink):
    """The tasks of a schedule have such ids. A Message-ID made from an id would end at its first colon."""
    context = Context()
    for context.task_id in (
        "nightly@2026-11-25T10:05:00Z",
        "nightly@2026-11-25T10:10:00Z",
        "nightly@2026-11-25T10:05:00Z",
    ):
        handler.execute(MAIL, context)
    first, other, again = (mail["Message-ID"] for mail in sink.mails)
    assert first == again != other
    assert re.fullmatch("<[0-9a-f]{32}@dtq>", first)


def test_a_server_that_is_away_or_refuses_fails_the_attempt(handler, sink, monkeypatch):
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
        assert [handle.result() for handle in handles] == [
            {"message_id": message_id(handle.id), "to": ["ada@example.org"]} for handle in handles
        ]
    assert sorted(int(mail["Subject"]) for mail in sink.mails) == list(range(20))
    assert {mail["Message-ID"] for mail in sink.mails} == {message_id(handle.id) for handle in handles}


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_in_with_the_data_and_so_is_the_subject(handler, sink):
    context = Context()
    handler.execute(LETTER | {"data": DATA}, context)
    (mail,) = sink.mails
    assert (mail["Subject"], mail.get_content_type()) == ("Order 7", "text/plain")
    assert mail.get_content().splitlines() == ["Dear Ada & Bob,", "bye"]
    assert mail["Message-ID"] == message_id("t1")
    assert context.seen == [10, 25, 50, 100]


@pytest.mark.parametrize("text", [{"template": "Dear {{ name }}"}, {"text": "Dear {{ name }}"}])
def test_html_is_an_alternative_in_which_values_are_escaped(handler, sink, text):
    html = {"to": "ada@example.org", "subject": "{{ name }}", "html": "<p>Dear {{ name }}</p>", "data": DATA}
    handler.execute(html | text, Context())
    (mail,) = sink.mails
    plain, rich = mail.iter_parts()
    assert [mail.get_content_type(), plain.get_content_type(), rich.get_content_type()] == [
        "multipart/alternative", "text/plain", "text/html",
    ]  # fmt: skip
    assert rich.get_content().strip() == "<p>Dear Ada &amp; Bob</p>"
    assert plain.get_content().strip() == ("Dear Ada & Bob" if "template" in text else "Dear {{ name }}")
    assert mail["Subject"] == "Ada & Bob"


def test_without_a_template_nothing_is_filled_in(handler, sink):
    handler.execute(MAIL | {"subject": "{{ n }}", "text": "{{ name }}"}, Context())
    assert (sink.mails[0]["Subject"], sink.mails[0].get_content().strip()) == ("{{ n }}", "{{ name }}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"template": "{{ nam }}"},
            "template cannot be rendered: UndefinedError: 'nam' is undefined; data has: n, name",
        ),
        ({"html": "{{ nam }}"}, "html cannot be rendered: UndefinedError: 'nam' is undefined"),
        ({"subject": "{{ nam }}"}, "subject cannot be rendered: UndefinedError: 'nam' is undefined"),
        ({"template": "{{ name.first }}"}, "has no attribute 'first'"),
        ({"template": "{{ nam }}", "data": {}}, "data has: nothing"),
        ({"template": "a\n{% if %}"}, "template cannot be rendered in line 2: TemplateSyntaxError"),
        ({"template": "{{ 1 / 0 }}"}, "ZeroDivisionError: division by zero"),
        ({"template": "{% include '/etc/passwd' %}"}, "no loader"),
        ({"template": "{{ name.__class__.__mro__ }}"}, "SecurityError"),
        ({"template": "{{ data.append(1) }}", "data": {"data": []}, "subject": "s"}, "SecurityError"),
        ({"template": ENDLESS}, "template renders to more than the 1,000,000 characters that are allowed"),
        ({"template": "x" * 1_000_001}, "the length of template is 1000001; allowed: at most 1,000,000 characters"),
        ({"subject": "{{ 'x' * 501 }}"}, "subject renders to more than the 500"),
        ({"subject": "x" * 501}, "the length of subject is 501; allowed: at most 500"),
        ({"subject": "{{ 'a\\nBcc: x@y.z' }}"}, "subject is 'a\\nBcc: x@y.z'; allowed: one line"),
        ({"subject": "{{ name }}", "data": {"name": "a\r\nBcc: x@y.z"}}, "allowed: one line"),
        ({"subject": "{{ name }}", "data": {"name": "a\x85Bcc: x@y.z"}}, "allowed: one line"),
        ({"subject": "{{ name }}", "data": {"name": "a\n"}}, "allowed: one line"),
        ({"text": "hello"}, "allowed: either 'text' or 'template', not both"),
        ({"template": 3}, "template is 3; allowed: text"),
        ({"html": None}, "html is None; allowed: text"),
        ({"data": [1]}, "data is [1]; allowed: an object with the variables"),
    ],
)
def test_a_template_that_fails_is_named_and_no_mail_is_sent(handler, sink, change, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        handler.execute(LETTER | {"data": DATA} | change, Context())
    assert words in str(caught.value)
    assert sink.mails == []


def test_data_without_a_template_are_refused(handler, sink):
    with pytest.raises(ValueError, match=r"data is \{\}; allowed: only beside 'template'"):
        handler.execute(MAIL | {"data": {}}, Context())


def test_html_without_text_is_refused(handler, sink):
    with pytest.raises(ValueError, match="text is None; allowed: text"):
        handler.execute({"to": "a@b.c", "subject": "s", "html": "<p>"}, Context())


def test_jinja2_is_needed_for_templates_only_and_the_error_says_how_to_get_it(handler, sink, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    handler.execute(MAIL, Context())
    with pytest.raises(ImportError, match=r'pip install "dtq\[handlers\]"'):
        handler.execute(LETTER | {"data": DATA}, Context())
    assert len(sink.mails) == 1


# --- encryption and login ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=dtq "
        "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=path, check=True, capture_output=True)
    return path / "cert.pem", path / "key.pem"


def gate(server, session, envelope, mechanism, given):
    """Accepts the login of ada. To others it repeats the password, as a server should not."""
    known = (given.login, given.password) == (b"ada", b"open sesame")
    return AuthResult(success=known, handled=False, message=f"535 5.7.8 no: {given.password.decode()}")


@pytest.fixture
def safe_sink(certificate, monkeypatch):
    """A server that demands encryption and a login; this machine trusts its certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("DTQ_SMTP_TLS", "starttls")
    monkeypatch.setenv("DTQ_SMTP_USER", "ada")
    monkeypatch.setenv("DTQ_SMTP_PASSWORD", "open sesame")
    options = {"tls_context": context, "require_starttls": True, "auth_required": True, "authenticator": gate}
    with serving(Sink(), monkeypatch, **options) as sink:
        yield sink


def test_a_mail_goes_over_an_encrypted_connection_after_a_login(handler, safe_sink):
    context = Context()
    handler.execute(MAIL, context)
    assert len(safe_sink.mails) == 1
    assert context.seen == [25, 50, 60, 70, 100]


def test_a_server_with_an_untrusted_certificate_gets_neither_password_nor_mail(handler, safe_sink, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    context = Context()
    with pytest.raises(ssl.SSLCertVerificationError):
        handler.execute(MAIL, context)
    assert (safe_sink.mails, context.seen) == ([], [25, 50])


def test_a_server_that_cannot_encrypt_gets_no_mail(handler, sink, monkeypatch):
    monkeypatch.setenv("DTQ_SMTP_TLS", "starttls")
    with pytest.raises(handler.smtplib.SMTPNotSupportedError):
        handler.execute(MAIL, Context())
    assert sink.mails == []


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DTQ_SMTP_TLS": "ssl"}, "DTQ_SMTP_TLS is 'ssl'; allowed: starttls, or nothing"),
        ({"DTQ_SMTP_USER": "ada", "DTQ_SMTP_PASSWORD": "geheim"}, "set DTQ_SMTP_TLS=starttls"),
        ({"DTQ_SMTP_USER": "ada", "DTQ_SMTP_TLS": "starttls"}, "DTQ_SMTP_PASSWORD is empty"),
        ({"DTQ_SMTP_USER": "ada", "DTQ_SMTP_TLS": "starttls", "DTQ_SMTP_PASSWORD": "geheimü"}, "allowed: ASCII text"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_sent(handler, sink, monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="DTQ_SMTP") as caught:
        handler.execute(MAIL, Context())
    assert words in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert sink.mails == []


def test_no_field_of_a_task_contains_the_password(safe_sink, tmp_path, monkeypatch):
    passwords = "open sesame", "hunter2"
    tasks = []
    for password in passwords:
        monkeypatch.setenv("DTQ_SMTP_PASSWORD", password)
        with TaskQueue(tmp_path / "q.db", {"email": FILE}, pool_size=1) as queue:
            handle = queue.add("email", MAIL, max_attempts=2, retry_delay=0)
            queue.join(WAIT)
            tasks.append(handle.task)
    assert [task.status for task in tasks] == ["completed", "failed"]
    assert "(535, 'the login of ada was refused')" in tasks[1].error.message
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"the login of ada was refused" in written
    assert not any(password.encode() in written or password in repr(tasks) for password in passwords)


# --- kills ------------------------------------------------------------------------------------------------------------


class DeadlySink(Sink):
    """Kills the worker of every 7th mail, in turn just before and just after the mail has arrived."""

    def __init__(self, kills: int) -> None:
        super().__init__()
        self.queue = None
        self.kills = kills
        self.seen = 0
        self.killed: collections.Counter[str] = collections.Counter()  # by Message-ID
        self.arrived: collections.Counter[str] = collections.Counter()

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        mail_id = mail["Message-ID"]
        self.seen += 1
        deadly = self.seen % 7 == 0 and self.killed.total() < self.kills
        if deadly:
            os.kill(await self.worker_of(mail_id), signal.SIGKILL)
            self.killed[mail_id] += 1
        if not deadly or self.killed.total() % 2:
            self.arrived[mail_id] += 1
        return "250 OK"

    async def worker_of(self, mail_id):
        while True:
            for worker in self.queue.workers():
                if worker.task_id and message_id(worker.task_id) == mail_id:
                    return worker.pid
            await asyncio.sleep(0.002)  # the queue learns of it a moment later


@pytest.mark.long
def test_killed_workers_lose_no_mail_and_repeat_only_mails_that_had_arrived(tmp_path, monkeypatch):
    with (
        serving(DeadlySink(kills=16), monkeypatch) as sink,
        TaskQueue(tmp_path / "q.db", {"email": FILE}, pool_size=2) as queue,
    ):
        sink.queue = queue
        options = {"max_attempts": 20, "retry_delay": 0}
        handles = queue.add_many(
            {"type": "email", "payload": LETTER | {"data": DATA | {"n": n}}, **options} for n in range(100)
        )
        queue.join(WAIT)
        tasks = {message_id(handle.id): handle.task for handle in handles}
    assert {task.status for task in tasks.values()} == {"completed"}
    assert sink.killed.total() == 16
    assert sink.arrived.keys() == tasks.keys()  # by Message-ID: each once
    assert all(sink.arrived[id] <= 1 + len(task.history) for id, task in tasks.items())
    assert {id: len(task.history) for id, task in tasks.items() if task.history} == sink.killed
    assert sink.arrived.total() == 100 + 8
    assert {attempt.error.signal for task in tasks.values() for attempt in task.history} == {signal.SIGKILL}

"""Send an email through SMTP: a handler that waits instead of computing, loaded by its path.

    TaskQueue(handlers={"email": "handlers/send_email.py"})
    queue.add("email", {"to": "ada@example.org", "subject": "Hello", "text": "How are you?"})
    queue.add("email", {
        "to": "ada@example.org",
        "subject": "Your order {{ number }}",       # with a template, or html, the subject is a template too
        "template": "Dear {{ name }},\\n...",        # Jinja2, in place of `text`
        "html": "<p>Dear {{ name }},</p>...",       # optional: the same as HTML; values are escaped
        "data": {"name": "Ada", "number": 7},
    })

    payload -> check -> render -> message -> check -> SMTP server

Where the mail goes is configuration of the worker, not of the task: a payload cannot name a server. Nor can it add a
header: the finished message is read back before it is sent. An attempt that is repeated sends the same Message-ID
again, so that the receiving side can recognize a repeated mail.

    DTQ_SMTP_HOST, DTQ_SMTP_PORT, DTQ_SMTP_FROM     127.0.0.1, 25, dtq@localhost
    DTQ_SMTP_TLS=starttls                           encrypt; a certificate that is not valid fails the mail
    DTQ_SMTP_USER, DTQ_SMTP_PASSWORD                log in, over an encrypted connection only
"""

from __future__ import annotations

import hashlib
import os
import smtplib
import ssl
from email import message_from_bytes
from email.errors import InvalidHeaderDefect, MessageError
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any, NoReturn

TIMEOUT = 10.0  # seconds for each reply of the server
MAX_RECIPIENTS = 100
MAX_SUBJECT = 500  # characters, of a template and of the rendered text
MAX_BODY = 1_000_000
FIELDS = {"to", "subject", "text", "from", "template", "html", "data"}
TEMPLATES = {"template", "html"}


def execute(payload: Any, context: Any) -> dict[str, Any]:
    """Send the mail and return its Message-ID and its recipients.

    Raises ValueError for a payload that can never work (the message names the field, the value and what is allowed);
    OSError or smtplib.SMTPException if the server cannot be reached or refuses the mail.
    """
    payload = check_payload(payload)
    if payload.keys() & TEMPLATES:
        payload = render_payload(payload)
        context.progress(10, "rendered")
    message = compose(payload, context.task_id)
    context.progress(25, "composed")
    send(message, context)
    context.progress(100, "accepted by the server")
    return {"message_id": str(message["Message-ID"]), "to": payload_recipients(payload)}


# The payload.


def check_payload(payload: Any) -> dict[str, Any]:
    """Return the payload if all of its fields can be used. Raises ValueError otherwise."""
    if not isinstance(payload, dict):
        refuse("payload", payload, "an object with 'to', 'subject', 'text' or 'template' and, if needed, others")
    if unknown := payload.keys() - FIELDS:
        refuse(min(unknown), payload[min(unknown)], f"only the fields {', '.join(sorted(FIELDS))}")
    check_body(payload)
    check_text("subject", payload.get("subject"), MAX_SUBJECT)
    if not payload.keys() & TEMPLATES:
        check_subject(payload["subject"])
    for address in [*payload_recipients(payload), payload.get("from", sender())]:
        check_address(address)
    return payload


def check_body(payload: dict[str, Any]) -> None:
    if "text" in payload and "template" in payload:
        refuse("template", payload["template"], "either 'text' or 'template', not both")
    for field in ({"template"} if "template" in payload else {"text"}) | ({"html"} & payload.keys()):
        check_text(field, payload.get(field), MAX_BODY)
    if "data" in payload and not payload.keys() & TEMPLATES:
        refuse("data", payload["data"], "only beside 'template' or 'html'")
    if not isinstance(payload.get("data", {}), dict):
        refuse("data", payload["data"], "an object with the variables of the templates")


def check_text(field: str, value: Any, limit: int) -> None:
    if not isinstance(value, str):
        refuse(field, value, "text")
    if len(value) > limit:
        refuse(f"the length of {field}", len(value), f"at most {limit:,} characters")


def check_subject(subject: str) -> None:
    r"""Refuse a subject of several lines: the second line would become another header. Python ends lines at more
    characters than \r and \n."""
    if subject and subject.splitlines() != [subject]:
        refuse("subject", subject, "one line")


def payload_recipients(payload: dict[str, Any]) -> list[Any]:
    to = payload.get("to")
    recipients = to if isinstance(to, list) else [to]
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        refuse("to", to, f"1 to {MAX_RECIPIENTS} addresses")
    return recipients


def check_address(address: Any) -> None:
    """Refuse anything but one address on one line, with a name and a domain. Only the server knows whether it
    exists."""
    usable = isinstance(address, str) and address.isprintable() and "," not in address and "=?" not in address
    if not usable or bare(address) is None:
        refuse("address", address, "one such as ada@example.org or Ada <ada@example.org>")


def bare(address: str) -> str | None:
    """Return the ada@example.org of an address; None unless there is exactly one."""
    message = EmailMessage(policy=SMTP)
    try:
        message["To"] = address
        header = message["To"]
        (found,) = header.addresses
    except (ValueError, IndexError):  # no address, several, or one that Python cannot parse
        return None
    broken = any(isinstance(defect, InvalidHeaderDefect) for defect in header.defects)
    is_group = any(group.display_name for group in header.groups)
    return None if broken or is_group or not (found.username and found.domain) else str(found.addr_spec)


def sender() -> str:
    return os.environ.get("DTQ_SMTP_FROM", "dtq@localhost")


def refuse(field: str, value: Any, allowed: str) -> NoReturn:
    raise ValueError(f"{field} is {value!r:.80}; allowed: {allowed}")


# The templates.


def render_payload(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload with its templates rendered: a subject, a text and, if one was given, an html."""
    data = payload.get("data", {})
    rendered = {"subject": render("subject", payload["subject"], data, MAX_SUBJECT)}
    check_subject(rendered["subject"])
    if "template" in payload:
        rendered["text"] = render("template", payload["template"], data, MAX_BODY)
    if "html" in payload:
        rendered["html"] = render("html", payload["html"], data, MAX_BODY)
    return payload | rendered


def render(field: str, source: str, data: dict[str, Any], limit: int) -> str:
    """Return the rendered template. A name that `data` does not have is an error: it must not leave a gap in a mail.

    The sandbox keeps a template away from Python and from changing the data. It does not limit time, which the timeout
    of the task does, nor the memory of a single expression such as 'x' * 10**9.
    """
    environment = sandbox(autoescape=field == "html")
    pieces, length = [], 0
    try:
        for piece in environment.from_string(source).generate(data):
            pieces.append(piece)
            length += len(piece)
            if length > limit:
                break
    except Exception as error:  # a template is code: it can raise anything
        refuse_template(field, error, data)
    if length > limit:
        raise ValueError(f"{field} renders to more than the {limit:,} characters that are allowed")
    return "".join(pieces)


def sandbox(autoescape: bool) -> Any:
    try:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError('a template needs jinja2, which is not installed: pip install "dtq[handlers]"') from error
    return ImmutableSandboxedEnvironment(autoescape=autoescape, undefined=StrictUndefined)


def refuse_template(field: str, error: Exception, data: dict[str, Any]) -> NoReturn:
    line = f" in line {error.lineno}" if hasattr(error, "lineno") else ""  # a syntax error has a line
    names = ", ".join(map(str, data)) or "nothing"
    raise ValueError(
        f"{field} cannot be rendered{line}: {type(error).__name__}: {error}; data has: {names:.500}"
    ) from error


# The mail.


def compose(payload: dict[str, Any], task_id: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = payload.get("from", sender())
    message["To"] = ", ".join(payload_recipients(payload))
    message["Subject"] = payload["subject"]
    message["Message-ID"] = message_id(task_id)
    message.set_content(payload["text"])
    if "html" in payload:
        message.add_alternative(payload["html"], subtype="html")
    check_composed(message, payload)
    return message


def message_id(task_id: str) -> str:
    """Return the Message-ID of a task, the same for each of its attempts. A task id may have characters that it must
    not."""
    return f"<{hashlib.sha256(task_id.encode()).hexdigest()[:32]}@dtq>"


def check_composed(message: EmailMessage, payload: dict[str, Any]) -> None:
    """Parse the message as it will be sent, and refuse any header or value that the payload did not give.

    Python decodes an encoded word such as =?utf-8?q?a=0D=0ABcc:_b=40c.org?= when a header is set, and then writes the
    decoded text, line breaks included.
    """
    to = [bare(address) for address in payload_recipients(payload)]
    is_ascii = (str(message["From"]) + str(message["To"])).isascii()
    try:
        sent = message_from_bytes(message.as_bytes(policy=SMTP.clone(utf8=not is_ascii)), policy=SMTP)
    except (MessageError, ValueError) as error:
        raise ValueError(f"the mail cannot be written: {error}") from error
    if str(sent["Subject"]).split() != payload["subject"].split():
        refuse("subject", payload["subject"], "text without an encoded word such as =?utf-8?q?...?=")
    if [address.addr_spec for address in sent["To"].addresses] != to:
        refuse("to", payload["to"], "addresses that one header can list")
    if sent.keys() != message.keys():
        refuse("the list of headers", sent.keys(), ", ".join(message.keys()))


def send(message: EmailMessage, context: Any) -> None:
    host, port = os.environ.get("DTQ_SMTP_HOST", "127.0.0.1"), int(os.environ.get("DTQ_SMTP_PORT", "25"))
    encrypted, login = is_encrypted(), credentials()
    with smtplib.SMTP(host, port, timeout=TIMEOUT) as server:
        context.progress(50, f"connected to {host}:{port}")
        if encrypted:
            server.starttls(context=ssl.create_default_context())
            context.progress(60, "encrypted")
        if login:
            log_in(server, *login)
            context.progress(70, f"logged in as {login[0]}")
        refused = server.send_message(message, to_addrs=[address.addr_spec for address in message["To"].addresses])
    if refused:
        raise smtplib.SMTPRecipientsRefused(refused)


def is_encrypted() -> bool:
    mode = os.environ.get("DTQ_SMTP_TLS", "")
    if mode not in ("", "starttls"):
        refuse("DTQ_SMTP_TLS", mode, "starttls, or nothing")
    return mode == "starttls"


def credentials() -> tuple[str, str] | None:
    """Return user and password if the server needs them. No error message may show the password."""
    user, password = os.environ.get("DTQ_SMTP_USER", ""), os.environ.get("DTQ_SMTP_PASSWORD", "")
    if not user:
        return None
    if not is_encrypted():
        raise ValueError("DTQ_SMTP_USER is set, but the password would travel in the clear: set DTQ_SMTP_TLS=starttls")
    if not password or not (user + password).isascii():
        raise ValueError("DTQ_SMTP_PASSWORD is empty or not ASCII, or DTQ_SMTP_USER is not; allowed: ASCII text")
    return user, password


def log_in(server: smtplib.SMTP, user: str, password: str) -> None:
    try:
        server.login(user, password)
    except smtplib.SMTPAuthenticationError as error:  # the server's text may repeat the credentials
        raise smtplib.SMTPAuthenticationError(error.smtp_code, f"the login of {user} was refused") from None

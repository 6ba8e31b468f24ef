"""Send an email through SMTP: a handler that waits for others instead of computing, loaded by its path.

    TaskQueue(handlers={"email": "handlers/send_email.py"})
    queue.add("email", {"to": "ada@example.org", "subject": "Hello", "text": "How are you?"})

    payload -> check -> message -> SMTP server ($DTQ_SMTP_HOST, $DTQ_SMTP_PORT, $DTQ_SMTP_FROM)

Where the mail goes is configuration of the worker, not of the task: a payload cannot name a server. An attempt that is
repeated sends the same Message-ID again, by which the receiving side can tell that it is no new mail.
"""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import parseaddr
from typing import Any

TIMEOUT = 10.0  # seconds for each answer of the server
MAX_RECIPIENTS = 100
FIELDS = {"to", "subject", "text", "from"}


def execute(payload: Any, context: Any) -> dict[str, Any]:
    """Send the mail and return its Message-ID and its recipients.

    Raises ValueError for a payload that can never work (it names the field, the value and what is allowed),
    OSError or smtplib.SMTPException where the server cannot be reached or refuses.
    """
    message = compose(check_payload(payload), context.task_id)
    context.progress(25, "composed")
    host, port = os.environ.get("DTQ_SMTP_HOST", "127.0.0.1"), int(os.environ.get("DTQ_SMTP_PORT", "25"))
    with smtplib.SMTP(host, port, timeout=TIMEOUT) as server:
        context.progress(50, f"connected to {host}:{port}")
        refused = server.send_message(message)
    if refused:
        raise smtplib.SMTPRecipientsRefused(refused)
    context.progress(100, "accepted by the server")
    return {"message_id": message["Message-ID"], "to": payload_recipients(payload)}


def check_payload(payload: Any) -> dict[str, Any]:
    """The payload, if every field of it can be used."""
    if not isinstance(payload, dict):
        refuse("payload", payload, "an object with 'to', 'subject', 'text' and, if need be, 'from'")
    if unknown := payload.keys() - FIELDS:
        refuse(min(unknown), payload[min(unknown)], f"only the fields {', '.join(sorted(FIELDS))}")
    for field in ("subject", "text"):
        if not isinstance(payload.get(field), str):
            refuse(field, payload.get(field), "text")
    if "\n" in payload["subject"] or "\r" in payload["subject"]:
        refuse("subject", payload["subject"], "one line")
    for address in [*payload_recipients(payload), payload.get("from", sender())]:
        check_address(address)
    return payload


def payload_recipients(payload: dict[str, Any]) -> list[Any]:
    to = payload.get("to")
    recipients = to if isinstance(to, list) else [to]
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        refuse("to", to, f"1 to {MAX_RECIPIENTS} addresses")
    return recipients


def check_address(address: Any) -> None:
    """An address is of one line, and has a name and a domain; whether it exists, only the server knows."""
    usable = isinstance(address, str) and address.isprintable() and "," not in address
    if not usable or not all(parseaddr(address)[1].rpartition("@")):
        refuse("address", address, "one such as ada@example.org or Ada <ada@example.org>")


def sender() -> str:
    return os.environ.get("DTQ_SMTP_FROM", "dtq@localhost")


def compose(payload: dict[str, Any], task_id: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = payload.get("from", sender())
    message["To"] = ", ".join(payload_recipients(payload))
    message["Subject"] = payload["subject"]
    message["Message-ID"] = f"<{task_id}@dtq>"  # of the task, not of the attempt
    message.set_content(payload["text"])
    return message


def refuse(field: str, value: Any, allowed: str) -> None:
    raise ValueError(f"{field} is {value!r:.80}; allowed: {allowed}")

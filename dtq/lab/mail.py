"""Mailbox: a real SMTP server in the notebook, for handlers/send_email.py. No mail leaves the machine."""

from __future__ import annotations

import email
import email.policy
import os
import socket
from email.message import EmailMessage

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


class Mailbox:
    """Keeps arriving mail in `mails`. Workers that start later find the server by DTQ_SMTP_HOST and DTQ_SMTP_PORT."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=_free_port())
        self._controller.start()
        os.environ["DTQ_SMTP_HOST"], os.environ["DTQ_SMTP_PORT"] = "127.0.0.1", str(self._controller.port)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep a mail; the server calls this for each one."""
        assert isinstance(envelope.content, bytes)
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"

    def close(self) -> None:
        self._controller.stop()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

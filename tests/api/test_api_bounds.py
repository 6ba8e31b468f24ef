"""What a connection may send: bounds in bytes, the Host and the Origin."""

from __future__ import annotations

import contextlib
import socket

import httpx
import pytest

pytest.importorskip("starlette")
import commands

from dtq import APIServer, DTQError, QueueManager

MIB = 1 << 20
TOKEN = "a-token-for-everything"
HEAD = (
    b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%sTransfer-Encoding: chunked\r\n\r\n"
)
CHUNK = b"%x\r\n%s\r\n" % (16, b'{"type": "some"}')


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    store = tmp_path_factory.mktemp("bounds") / "queue.db"
    with (
        QueueManager(store) as manager,
        APIServer(
            manager, port=0, token=TOKEN, allowed_hosts=["queue.example.org", "other.example.org:8443", "fe80::1"]
        ) as server,
    ):
        yield server


@contextlib.contextmanager
def sent(api, *parts, most=40 * MIB):
    """Send the parts, the last of them again and again until the server closes the connection or `most` bytes are
    sent. Yield the number of bytes, and what the server has answered."""
    n, received = 0, b""
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"".join(parts[:-1]))
            while n < most:
                connection.sendall(parts[-1])
                n += len(parts[-1])
        with contextlib.suppress(ConnectionError):
            received = connection.recv(4096)
        yield n, received


AUTHORISED = HEAD % (b"Authorization: Bearer %s\r\n" % TOKEN.encode())


def test_a_trailer_is_no_header(api):
    with sent(api, AUTHORISED, CHUNK, b"0\r\nHost: evil.example.org\r\nIdempotency-Key: a b\r\n\r\n", most=1) as (
        _,
        got,
    ):
        assert b" 201 " in got
    with sent(api, HEAD % b"", CHUNK, b"0\r\nAuthorization: Bearer %s\r\n\r\n" % TOKEN.encode(), most=1) as (_, got):
        assert b" 401 " in got


@pytest.mark.parametrize("head", [AUTHORISED, HEAD % b""])
@pytest.mark.parametrize("endless", [b"x: y\r\n" * 10_000, b"y" * 60_000], ids=["many trailers", "one long trailer"])
def test_endless_trailers_end_the_connection(api, head, endless):
    with sent(api, head, CHUNK, b"0\r\nX: ", endless) as (n, _):
        assert n < 10 * MIB


@pytest.mark.parametrize("head", [AUTHORISED, HEAD % b""])
def test_an_endless_body_ends_the_connection_with_and_without_a_token(api, head):
    with sent(api, head, b"%x\r\n%s\r\n" % (60_000, b" " * 60_000)) as (n, _):
        assert n < 20 * MIB


def test_a_body_in_chunks_of_one_byte_is_read(api):
    body = b'{"type": "some", "payload": "%s"}' % (b"x" * 50_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with sent(api, AUTHORISED, chunks, b"0\r\n\r\n", most=1) as (_, got):
        assert b" 201 " in got


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("queue.example.org", "https://queue.example.org", 200),
        ("queue.example.org", "https://queue.example.org:8443", 403),
        ("queue.example.org:8443", "https://queue.example.org:8443", 200),
        ("127.0.0.1", "https://queue.example.org", 200),
        ("127.0.0.1", "https://queue.example.org:8443", 403),
        ("127.0.0.1", "https://other.example.org:8443", 200),
        ("127.0.0.1", "https://other.example.org", 403),
        ("other.example.org:8443", "https://other.example.org:8443", 200),
        ("[fe80::1]:3000", "http://[fe80::1]:3000", 200),
        ("localhost:3000", "http://localhost:3001", 403),
    ],
)
def test_a_page_may_ask_from_the_same_port_only(api, host, origin, status):
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": host, "Origin": origin}
    assert httpx.get(f"{api.url}stats", headers=headers).status_code == status


@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization"])
def test_a_header_that_decides_who_may_ask_comes_once(api, name):
    values = {"Host": "localhost", "Origin": "http://localhost", "Authorization": f"Bearer {TOKEN}"}
    lines = [f"{key}: {value}" for key, value in [*values.items(), (name, values[name])]]
    request = "\r\n".join(["GET /stats HTTP/1.1", *lines, "", ""]).encode()
    with sent(api, request, most=1) as (_, got):
        assert b" 400 " in got
        assert b"application/problem+json" in got


def test_behind_a_proxy_a_token_is_needed_unless_it_is_waived():
    with pytest.raises(DTQError, match="without_token"):
        APIServer("queue.db", allowed_hosts=["queue.example.org"])
    APIServer("queue.db", allowed_hosts=["queue.example.org"], token=TOKEN)
    APIServer("queue.db", allowed_hosts=["queue.example.org"], without_token=True)
    with pytest.raises(DTQError, match="no token is set"):
        APIServer("queue.db", host="0.0.0.0", without_token=True)


def test_dtq_serve_refuses_an_open_proxy(tmp_path):
    options = ["serve", f"{tmp_path}/queue.db", "--port=0", "--allowed-host=queue.example.org"]
    code, out, err = commands.run(*options)
    assert (code, out) == (2, "")
    assert "--without-token" in err
    with commands.start(*options, "--without-token") as process:
        assert process.stdout.readline().startswith("ready: ")
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0

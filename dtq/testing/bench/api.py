"""Measure the API: `python -m dtq.testing.bench.api`.

Sixteen connections add tasks one by one, each committed durably; beside that, one connection adds them in batches of a
thousand. For comparison, the bare framework answers the same bodies and stores nothing. Each server is a process of its
own, and this process asks them in turn, so that one run compares them under the same conditions.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dtq.api.http_server import listen
from dtq.api.requests import OneOrMany, decoder
from dtq.api.responses import Accepted
from dtq.api.server import APIServer

CONNECTIONS, SECONDS, ROUNDS, BATCH = 16, 3.0, 5, 1000
decode = decoder(OneOrMany)
HEAD = b"POST /tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
ID = "0" * 32
ONE = msgspec.json.encode({"type": "double", "payload": {"n": 21, "note": "as small as most"}})
MANY = msgspec.json.encode([{"type": "double", "payload": {"n": n}} for n in range(BATCH)])


async def answer(request: Request) -> Response:
    """Read and check the same body, and answer it, but store nothing."""
    decode(await request.body())
    content = msgspec.json.encode(Accepted(ID, True))
    return Response(content, status_code=201, media_type="application/json", headers={"Location": f"tasks/{ID}"})


def serve_bare() -> None:
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    app = Starlette(routes=[Route("/tasks", answer, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, http="httptools", log_level="error", access_log=False)).run(sockets=[listener])


def serve_api(url: str) -> None:
    with APIServer(url, port=0) as api:
        print(api.port, flush=True)
        sys.stdin.read()


@contextmanager
def server(*arguments: str) -> Iterator[int]:
    command = [sys.executable, "-m", "dtq.testing.bench.api", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def rate(port: int, body: bytes, connections: int) -> float:
    """Return requests a second. Each response is read to its end and must be a 201."""
    request, n = HEAD % len(body) + body, 0
    selector = selectors.DefaultSelector()
    sockets = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        sockets[client.fileno()] = client
        selector.register(client, selectors.EVENT_READ, bytearray())
        client.sendall(request)
    began = time.perf_counter()
    while time.perf_counter() < began + SECONDS:
        for key, _ in selector.select():
            client, received = sockets[key.fd], key.data
            received += client.recv(1 << 18)
            if received.endswith((b"}", b"}]")):
                assert received.startswith(b"HTTP/1.1 201 "), bytes(received[:500])
                n += 1
                received.clear()
                client.sendall(request)
    took = time.perf_counter() - began
    for client in sockets.values():
        client.close()
    return n / took


def main() -> None:
    print(f"Python {sys.version.split()[0]}; medians (worst to best) of {ROUNDS} rounds of {SECONDS:g} s, in turn")
    with tempfile.TemporaryDirectory(dir=".") as directory:
        urls = {"sqlite": f"{directory}/queue.db", "file": f"file:{directory}/queue"}
        figures: dict[str, list[float]] = {}
        with server("bare") as bare, server("api", urls["sqlite"]) as sqlite, server("api", urls["file"]) as file:
            for _ in range(ROUNDS):
                for name, port in (("bare framework", bare), ("sqlite", sqlite), ("file", file)):
                    figures.setdefault(name, []).append(rate(port, ONE, CONNECTIONS))
            for name, port in (("sqlite", sqlite), ("file", file)):
                figures[f"{name}, batches of {BATCH:,}"] = [rate(port, MANY, 1) * BATCH for _ in range(ROUNDS)]
    base = statistics.median(figures["bare framework"])
    for name, values in figures.items():
        middle = statistics.median(values)
        share = "" if "batches" in name else f"   {middle / base:.2f} of the bare framework"
        print(f"{name:24} {middle:10,.0f} tasks/s   ({min(values):,.0f} to {max(values):,.0f}){share}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bare"]:
            serve_bare()
        case ["api", url]:
            serve_api(url)
        case _:
            main()

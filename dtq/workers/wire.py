"""The messages between a pool and its workers, their frames, and the socket that carries them.

        pool                                                      worker
         | -- Hello, Define, Calls, Recall, Stop, Retire ---------> |
         | <-- Ready, Started, Progress, Log, Done, Returned ------ |

A frame is the length of its body (4 bytes, big-endian) and the body, in MessagePack: one message for a worker, or a
list of messages from it. Payloads and results travel as the JSON bytes that the store keeps, so that a call means the
same wherever it runs.

A Channel is the pool's end of the socket. It never blocks:

    send ---> [bytes that the socket has not taken] ---> socket ---> [start of the next frame] ---> receive
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector

import msgspec

from dtq.task.model import ErrorInfo

MAX_RESULT = 1 << 20  # the default limit of a result, in bytes of JSON
READ_SIZE = 1 << 18  # bytes asked for in one read
MAX_READS = 16  # reads from one socket before the other sockets have their turn
_LENGTH = struct.Struct("!I")

# Between the pool and the zygote
FORK, KILL, FORKED, EXITED = b"F", b"K", b"f", b"x"
REQUEST = struct.Struct("!cI")  # FORK or KILL, serial of the worker
REPORT = struct.Struct("!cIi")  # FORKED or EXITED, serial, process id or exit code (-9: killed by signal 9)


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt to run. `number` is unique within the pool and never used for another attempt."""

    number: int
    id: str
    type: str
    payload: bytes  # JSON
    attempt: int
    timeout: float
    parents: bytes = b""  # the results of its parents (see parents.py); empty for a task without parents


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Where a worker finds a handler: kind "name" ("package.module:function"), "path" (a .py file, its `execute`), or
    "value" (`code` holds the function, pickled by cloudpickle).

    `concurrency` limits how many calls of an async handler run at once in a worker. `retry_on` and `give_up_on` hold
    names of exceptions: those that lead to another attempt, and those that end the task (see handler_registry.py).
    """

    kind: str
    where: str
    code: bytes = b""
    concurrency: int = 1
    retry_on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Source {self.kind} {self.where}>"  # without the code: it may hold secrets, and logs are read


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, tag_field="message"):
    """A message in a frame. Its first element, the tag, is its kind."""


# --- pool to worker ---------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=6):
    """The first message: the worker's name, the limit of a result in bytes of JSON, and the seconds from the
    interruption of a call to the kill."""

    worker: str
    max_result: int
    grace: float


class Define(Message, frozen=True, tag=1):
    """Use this handler for new calls of the type."""

    type: str
    source: Source


class Calls(Message, frozen=True, tag=2):
    """Run these calls, in order."""

    calls: list[Call]


class Recall(Message, frozen=True, tag=3):
    """Return all calls that have not started."""


class Stop(Message, frozen=True, tag=4):
    """Stop this call: interrupt it if it runs, return it if it has not started."""

    number: int


class Retire(Message, frozen=True, tag=5):
    """Finish all calls, run teardown(), and exit with code 0."""


# --- worker to pool ---------------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, tag=11):
    """The worker accepts calls."""

    pid: int


class Started(Message, frozen=True, tag=12):
    """The call has started. Sent before the handler is loaded, and again once a load has taken time."""

    number: int
    at: float  # UTC seconds
    loading: bool = False


class Progress(Message, frozen=True, tag=13):
    """The progress that the handler reported: `percent` from 0 to 100, and a note."""

    number: int
    percent: float
    note: str


class Log(Message, frozen=True, tag=14):
    """Text that the handler printed."""

    number: int
    text: str


class Done(Message, frozen=True, tag=15):
    """The call has ended, with a result (JSON) or an error.

    `final` is true when another attempt is useless, `delay` holds the seconds after which the handler asked for another
    attempt, and `discarded` is true when the handler dropped the task.
    """

    number: int
    started_at: float
    seconds: float
    result: bytes = b"null"
    error: ErrorInfo | None = None
    log: str = ""
    final: bool = False
    delay: float | None = None
    discarded: bool = False


class Returned(Message, frozen=True, tag=16):
    """These calls have not started and never will."""

    numbers: list[int]


ToWorker = Hello | Define | Calls | Recall | Stop | Retire
ToPool = Ready | Started | Progress | Log | Done | Returned
_encode = msgspec.msgpack.Encoder().encode
to_worker = msgspec.msgpack.Decoder(ToWorker).decode
to_pool = msgspec.msgpack.Decoder(list[ToPool]).decode


# --- frames -----------------------------------------------------------------------------------------------------------


def frame(message: ToWorker | list[ToPool]) -> bytes:
    """Return the frame of one message to a worker, or of a list of messages to the pool."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


def split(buffer: bytearray) -> Iterator[bytes]:
    """Yield the bodies of the complete frames at the start of the buffer, and leave only the incomplete one in it."""
    start, size = 0, len(buffer)
    with memoryview(buffer) as view:  # each body is copied once
        while size - start >= 4:
            end = start + 4 + _LENGTH.unpack_from(view, start)[0]
            if end > size:
                break
            yield bytes(view[start + 4 : end])
            start = end
    del buffer[:start]


class Channel:
    """The pool's end of a worker's socket, with a buffer for each direction.

    A worker that reads nothing, or stops in the middle of a frame, costs the pool only memory. The selector calls
    `on_event(mask)` when the socket is ready; `on_event` then calls `flush` and `receive`.
    """

    def __init__(self, selector: BaseSelector, on_event: Callable[[int], None]) -> None:
        self.is_open = True
        self._sock, self.other_end = socket.socketpair()
        self._sock.setblocking(False)
        self._selector, self._on_event = selector, on_event
        self._inbox, self._outbox = bytearray(), bytearray()
        selector.register(self._sock, EVENT_READ, on_event)

    def send(self, message: ToWorker) -> None:
        """Send what the socket takes now, and keep the rest for `flush`. Drop the message if the channel is closed."""
        if not self.is_open:
            return
        is_waiting = bool(self._outbox)
        self._outbox += frame(message)
        if not is_waiting:
            self._write()
            if self._outbox:
                self._selector.modify(self._sock, EVENT_READ | EVENT_WRITE, self._on_event)

    def flush(self) -> None:
        """Continue to send. Call it on EVENT_WRITE."""
        if self.is_open:
            self._write()
            if not self._outbox:
                self._selector.modify(self._sock, EVENT_READ, self._on_event)

    def receive(self) -> Iterator[bytes]:
        """Return the bodies of the complete frames that have arrived. Close the channel at the end of the stream."""
        for _ in range(MAX_READS):
            data = self._read()
            if data is None:
                break
            self._inbox += data
            if len(data) < READ_SIZE:
                break
        return split(self._inbox)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._selector.unregister(self._sock)
            self._sock.close()
            self.other_end.close()
            self._outbox.clear()

    def _write(self) -> None:
        try:
            del self._outbox[: self._sock.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # the other end is gone; `receive` will notice

    def _read(self) -> bytes | None:
        """Return the next bytes, b"" at the end of the stream, or None if nothing has arrived."""
        if not self.is_open:
            return None
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:  # reset by the other end
            data = b""
        if not data:
            self.close()
        return data

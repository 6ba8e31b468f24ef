"""What the pool and a worker say to each other, and how it is framed on their socket.

        pool                                                      worker
         | -- Hello, Define, Calls, Recall, Stop, Retire ---------> |
         | <-- Ready, Started, Progress, Log, Done, Returned ------ |

A frame is the length of its body (4 bytes, big-endian) and the body, in MessagePack: one message for a worker, or a
list of those that it sends at once. Payloads and results travel as the JSON bytes that the store keeps, so that a call
means the same wherever it runs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from dtq.task.model import ErrorInfo

MAX_RESULT = 1 << 20  # bytes of JSON, where nothing else is said
_LENGTH = struct.Struct("!I")

# Between the pool and the zygote
FORK, KILL, FORKED, EXITED = b"F", b"K", b"f", b"x"
REQUEST = struct.Struct("!cI")  # FORK or KILL, serial of the worker
REPORT = struct.Struct("!cIi")  # FORKED or EXITED, serial, process id or exit code (-9: killed by signal 9)


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt to run. `number` is unique within the pool: it names this attempt and no other."""

    number: int
    id: str
    type: str
    payload: bytes  # JSON
    attempt: int
    timeout: float
    parents: bytes = b""  # what they left (see parents.py); empty for a task that waited for nobody


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Where a worker gets a handler from: kind "name" ("package.module:function"), "path" (a .py file, its
    `execute`), or "value" (`code` holds it, pickled by cloudpickle). `concurrency` is how many calls of an async
    handler run at once. `retry_on` and `give_up_on` name the exceptions after which the task is tried again, and those
    after which it is not (see registry.py)."""

    kind: str
    where: str
    code: bytes = b""
    concurrency: int = 1
    retry_on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Source {self.kind} {self.where}>"  # the code may hold what is not to be read in a log


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, tag_field="message"):
    """What stands in a frame; the tag, its first element, says which message it is."""


# --- pool to worker ---------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=6):
    """The first message: the name that the worker goes by, how many bytes of JSON a result may have, and the seconds
    after which a call that was interrupted is killed."""

    worker: str
    max_result: int
    grace: float


class Define(Message, frozen=True, tag=1):
    """This is the handler of the type from now on."""

    type: str
    source: Source


class Calls(Message, frozen=True, tag=2):
    """Run these, in order."""

    calls: list[Call]


class Recall(Message, frozen=True, tag=3):
    """Give back what has not started."""


class Stop(Message, frozen=True, tag=4):
    """Stop this call: raise in it if it is running, give it back if it has not started."""

    number: int


class Retire(Message, frozen=True, tag=5):
    """Finish what you have, tear down, and exit with 0."""


# --- worker to pool ---------------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, tag=11):
    """The worker takes calls."""

    pid: int


class Started(Message, frozen=True, tag=12):
    """The call begins. Sent before the handler is loaded, and once more when a load has taken time."""

    number: int
    at: float  # UTC seconds
    loading: bool = False


class Progress(Message, frozen=True, tag=13):
    number: int
    percent: float
    note: str


class Log(Message, frozen=True, tag=14):
    number: int
    text: str


class Done(Message, frozen=True, tag=15):
    """The call has ended: with a result (JSON) or with an error. `final` says that trying again would be of no use,
    `delay` when the handler wants to be tried again, `discarded` that it wants the task to be dropped."""

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
    """These had not started and will not."""

    numbers: list[int]


ToWorker = Hello | Define | Calls | Recall | Stop | Retire
ToPool = Ready | Started | Progress | Log | Done | Returned
_encode = msgspec.msgpack.Encoder().encode
to_worker = msgspec.msgpack.Decoder(ToWorker).decode
to_pool = msgspec.msgpack.Decoder(list[ToPool]).decode


def frame(said: ToWorker | list[ToPool]) -> bytes:
    body = _encode(said)
    return _LENGTH.pack(len(body)) + body


def split(buffer: bytearray) -> Iterator[bytes]:
    """The bodies of the whole frames at the start of the buffer; what is left in it is the beginning of the next
    one."""
    start, size = 0, len(buffer)
    with memoryview(buffer) as view:  # each body is copied once
        while size - start >= 4:
            end = start + 4 + _LENGTH.unpack_from(view, start)[0]
            if end > size:
                break
            yield bytes(view[start + 4 : end])
            start = end
    del buffer[:start]

"""Frames: however the stream is cut, the same messages come out in the same order."""

from hypothesis import given
from hypothesis import strategies as st

from dtq.task.model import ErrorInfo
from dtq.workers import wire

numbers = st.integers(0, 2**63)
seconds = st.floats(0, 1e11)
text = st.text(max_size=50)
codes = st.none() | st.integers(-(2**31), 2**31)
errors = st.none() | st.builds(ErrorInfo, text, text, text, codes, codes)
calls = st.builds(wire.Call, numbers, text, text, st.binary(max_size=200), st.integers(0, 1000), seconds)
sources = st.builds(wire.Source, text, text, st.binary(max_size=200), st.integers(1, 10_000))
to_worker = st.one_of(
    st.builds(wire.Hello, text, numbers),
    st.builds(wire.Define, text, sources),
    st.builds(wire.Calls, st.lists(calls, max_size=5)),
    st.builds(wire.Recall),
    st.builds(wire.Stop, numbers),
    st.builds(wire.Retire),
)
to_pool = st.one_of(
    st.builds(wire.Ready, numbers),
    st.builds(wire.Started, numbers, seconds, st.booleans()),
    st.builds(wire.Progress, numbers, st.floats(0, 100), text),
    st.builds(wire.Log, numbers, text),
    st.builds(wire.Done, numbers, seconds, seconds, st.binary(max_size=200), errors, text, st.booleans()),
    st.builds(wire.Returned, st.lists(numbers, max_size=20)),
)


def received(stream, cuts):
    """Return the bodies that come out, and the rest of the buffer, when the stream arrives cut at these places."""
    buffer, bodies = bytearray(), []
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(stream)], strict=True):
        buffer += stream[start:end]
        bodies += wire.split(buffer)
    return bodies, bytes(buffer)


cuts = st.lists(st.integers(0, 2**16), max_size=20)


@given(st.lists(to_worker, max_size=8), cuts)
def test_messages_of_the_pool_arrive_complete_and_in_order(messages, cuts):
    bodies, rest = received(b"".join(map(wire.frame, messages)), cuts)
    assert [wire.to_worker(body) for body in bodies] == messages
    assert rest == b""


@given(st.lists(st.lists(to_pool, max_size=3), max_size=8), cuts)
def test_messages_of_a_worker_arrive_complete_and_in_order(frames, cuts):
    bodies, rest = received(b"".join(map(wire.frame, frames)), cuts)
    assert [wire.to_pool(body) for body in bodies] == frames
    assert rest == b""


@given(to_worker, st.integers(1, 2**16))
def test_an_incomplete_frame_stays_in_the_buffer(message, missing):
    frame = wire.frame(message)
    part = frame[: len(frame) - 1 - missing % len(frame)]
    buffer = bytearray(part)
    assert list(wire.split(buffer)) == []
    assert buffer == part

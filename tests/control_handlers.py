"""Handlers of test_control.py: they say by themselves what is to become of their task."""

from __future__ import annotations

import json
import os
import signal

from dtq import Discard, Retry


class Hiccup(Exception):
    """Passes by itself."""


class Deep(Hiccup):
    """A kind of it."""


KINDS = {"Hiccup": Hiccup, "Deep": Deep, "ValueError": ValueError, "JSON": lambda text: json.loads("{")}


def again(payload, context):
    if context.attempt < 3:
        raise Retry("not yet", delay=payload)
    return context.attempt


def again_for_a_reason(payload, context):
    try:
        raise OSError("busy")
    except OSError as error:
        raise Retry(delay=0) from error


def drop(payload, context):
    print("a last word")
    raise Discard(payload)


def throw(payload, context):
    raise KINDS[payload](payload)


async def again_async(payload, context):
    return again(payload, context)


async def drop_async(payload, context):
    drop(payload, context)


async def throw_async(payload, context):
    throw(payload, context)


def kill_the_worker(payload, context):
    os.kill(os.getpid(), signal.SIGSEGV)


def echo(payload, context):
    return payload

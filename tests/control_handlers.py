"""Handlers for test_control.py. Each decides whether its task is retried, discarded or failed."""

from __future__ import annotations

import json
import os
import signal

from dtq import Discard, Retry


class Hiccup(Exception):
    """A temporary error."""


class Deep(Hiccup):
    """A subclass of it."""


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
    print("the last line")
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

"""Kills, freezes and restarts on a real server, the short way; `python tests/kill_redis.py` is the long one."""

from __future__ import annotations

import kill_redis


def test_four_nodes_and_a_server_that_are_killed_lose_nothing():
    verdict = kill_redis.torment(tasks=500, kills=7, freezes=1, restarts=2, seconds=2, seed=1)
    assert verdict["faults"] == 10

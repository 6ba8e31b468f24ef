"""Kills, freezes and restarts on a real server, the short way; `python tests/kill_redis.py` is the long one."""

from __future__ import annotations

import kill_redis


def test_four_nodes_and_a_server_that_are_killed_lose_nothing():
    verdict = kill_redis.torment(tasks=2000, kills=10, freezes=2, restarts=2, seconds=6, seed=1)
    assert verdict["left when the faults were over"] > 0, "the tasks ended before the faults"

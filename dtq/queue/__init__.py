"""The queue itself: add tasks, run the loop, wait for results, manage schedules and dead letters.

May import: all rooms before it.
Read first: loop.py (one turn of a node), then task_queue.py (what users call).
"""

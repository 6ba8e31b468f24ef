"""The queue itself: add tasks, run the loop, wait for results, manage schedules and dead letters.

May import: all rooms before it.
Read first: loop.py, then task_queue.py.
"""

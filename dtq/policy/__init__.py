"""When a task may run: limits and schedules. Pure functions of the time.

May import: task.
Read first: limits.py.
"""

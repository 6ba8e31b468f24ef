"""When a task may run: limits, fairness and schedules. Pure functions of the time.

May import: task.
Read first: limits.py, picking.py.
"""

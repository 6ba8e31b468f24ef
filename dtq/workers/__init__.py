"""Run handlers: in processes (process/), threads, or inline; run/ is what happens around one call.

May import: task.
Read first: backend.py, then process/pool.py.
"""

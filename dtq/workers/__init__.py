"""Run handlers: in processes (process/), in threads, or inline. The code around one call is in run/.

May import: task.
Read first: backend.py, then process/pool.py.
"""

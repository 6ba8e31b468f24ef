"""Worker processes: the pool starts, feeds, watches and replaces them.

May import: workers, workers/metrics.
Read first: pool.py, then zygote.py.
"""

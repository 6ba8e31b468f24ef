"""Worker processes: start, feed, watch and replace them.

May import: workers, workers/metrics.
Read first: pool.py, then process.py, supervisor.py and zygote.py.
"""

"""The REST API over a QueueManager: one server process, or a cluster of them.

May import: queue, monitor/prometheus.
Read first: operations.py, then routes/tasks.py.
"""

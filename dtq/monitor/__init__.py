"""Watch a queue: readings, history, alerts, logs, figures, Prometheus.

May import: queue.
Read first: monitor.py.
"""

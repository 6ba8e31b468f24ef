"""Tell a receiver when a task ends: plant a delivery, sign it, check the address, send it.

May import: task, workers.
Read first: deliveries.py, then handler.py.
"""

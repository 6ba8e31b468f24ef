"""Measure the queue, the monitor and the API on this machine.

May import: testing.
Read first: queue.py.
"""

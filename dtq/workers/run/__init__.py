"""Run one call of a handler: load it, make its context, enforce its timeout, report its outcome.

May import: workers.
Read first: runner.py.
"""

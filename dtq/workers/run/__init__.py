"""What surrounds one call of a handler: loading, the context, timeouts, the outcome.

May import: workers.
Read first: runner.py.
"""

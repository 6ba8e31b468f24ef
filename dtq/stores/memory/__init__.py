"""The memory store: one process, no files. Its Index is the specification that the other stores must match.

May import: stores.
Read first: index.py.
"""

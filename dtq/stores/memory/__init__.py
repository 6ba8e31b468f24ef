"""The store of one process, without files: the specification that the other stores must match.

May import: stores.
Read first: index.py.
"""

"""One JSON file for each task, with a journal in front of them.

May import: stores, stores/shared, stores/memory.
Read first: store.py, then journal.py.
"""

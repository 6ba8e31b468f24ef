"""The default store: one SQLite database, for all processes of one machine.

May import: stores, stores/shared.
Read first: store.py, then schema.py.
"""

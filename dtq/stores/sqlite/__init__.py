"""The SQLite store, the default: one database file for all processes of one machine.

May import: stores, stores/shared.
Read first: store.py, then schema.py.
"""

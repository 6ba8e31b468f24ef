"""Stores keep the tasks: one protocol, and a folder for each store.

May import: errors, files, sync, task, policy.
Read first: protocol.py, then memory/index.py, the executable specification.
"""

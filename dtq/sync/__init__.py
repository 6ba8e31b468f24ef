"""Tools for threads and forks: waits that survive an interrupt, hooks around a fork.

May import: errors.
Read first: waits.py.
"""

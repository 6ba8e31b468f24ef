"""Tools for threads and forks: a wake-up, a condition that survives interrupts, hooks around a fork.

May import: errors.
Read first: wakeup.py.
"""

"""The routes, one file for each subject; common.py has what they share.

May import: api.
Read first: tasks.py.
"""

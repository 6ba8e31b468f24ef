"""The routes, one file for each subject.

May import: api.
Read first: tasks.py.
"""

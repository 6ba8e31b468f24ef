"""What a task is and how it changes: pure data and pure functions.

May import: errors.
Read first: model.py, then transitions.py.
"""

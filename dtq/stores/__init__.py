"""Where tasks live: one protocol, and a folder for each store that keeps it.

May import: task, policy, wakeup.
Read first: protocol.py, then memory/index.py, the specification in executable form.
"""

"""Parts that several stores share: group commit, peers on one machine, work while waiting for a server.

May import: stores.
Read first: group_commit.py.
"""

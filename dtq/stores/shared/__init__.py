"""What several stores use: group commit, peers on one machine, waiting for a server.

May import: stores.
Read first: group_commit.py.
"""

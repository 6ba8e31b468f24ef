"""What proves it: conformance (rules for stores), chaos (sieges and simulation), bench.

May import: all rooms before it.
Read first: conformance/kit.py.
"""

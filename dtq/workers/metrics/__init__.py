"""Measure a node: durations, outcomes, processor time, memory.

May import: workers.
Read first: node.py.
"""

"""What a node measures of itself: histograms, processor time, memory.

May import: workers.
Read first: node.py.
"""

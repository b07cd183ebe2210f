"""Reads the documents of a corpus: one module per format.

A format has two functions: `slices` lists a file in pieces that a worker can read, and `read`
yields the records of a piece.
"""

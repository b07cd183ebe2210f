"""Finds benchmarks in the documents of a corpus."""

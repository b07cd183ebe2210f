"""Finds exact and near-duplicates among the documents of a corpus."""

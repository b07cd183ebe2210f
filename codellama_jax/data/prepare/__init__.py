"""Prepares a corpus of any size with Apache Beam: see docs/data.md."""

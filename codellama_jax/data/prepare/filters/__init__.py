"""Rules that decide which documents are kept."""

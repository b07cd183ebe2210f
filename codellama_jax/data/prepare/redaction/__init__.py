"""Replaces personal data and keys in a text."""

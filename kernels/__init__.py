"""Kernels, one package each: `api.py` picks an implementation, `reference.py` is the oracle of the tests."""

"""Kernels, one package each: `api.py` picks an implementation, `reference.py` is the oracle of the tests."""


class Refused(ValueError):
    """A shape or dtype that a kernel cannot do; the message says what to use instead."""

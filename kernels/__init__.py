"""Kernels, one package each: `api.py` picks an implementation, `reference.py` is the tests' oracle.

To add a kernel, copy the shape of `kernels/decode_attention`: `reference.py` computes the result in
the plainest way, `xla.py` runs on any backend, `pallas_tpu.py` is the TPU kernel, `api.py` chooses
one and documents the arguments, `static_passes.py` counts the kernel's cycles without a TPU.
"""


class UnsupportedError(ValueError):
    """A shape or dtype that a kernel does not support; the message names what to use instead."""

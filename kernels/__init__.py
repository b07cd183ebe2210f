"""Kernels, one package each: `api.py` picks an implementation, `reference.py` is the tests' oracle.

To add a kernel, follow `kernels/decode_attention`: `reference.py` computes the result in the
plainest way, `xla.py` runs on any backend, `pallas_tpu.py` is the TPU kernel, `api.py` chooses one
of them and documents the arguments, `static_passes.py` counts the kernel's cycles without a TPU.

Names of arrays end in their axes, one letter per axis, as in `q_BTNH`; docs/glossary.md lists the
letters. Every Pallas kernel names its blocks' letters in its module docstring.
"""

# The logit of a masked position. It is finite, so that a masked logit minus a masked maximum is 0
# and not NaN. It is low enough that exp(MASKED - any real logit) is exactly 0 in fp32.
MASKED = -1e30


class UnsupportedError(ValueError):
    """A shape or dtype that a kernel does not support. The message names an alternative."""

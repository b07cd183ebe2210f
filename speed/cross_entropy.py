"""Memory of the cross-entropy with gradients, beside the plain form that holds all logits.

    PYTHONPATH=. python speed/cross_entropy.py

The problem is 16,384 tokens, 32,016 vocabulary entries, activations in bf16 and a head in fp32.
TPU lines are *compiler estimates*: the temporary buffers on one core, besides arguments and
results, where the `tpu` extra is installed. CPU lines are *measured*: the growth of the resident
set at its peak, each form in a separate process.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from kernels.static.chips import ENVIRONMENT

if TYPE_CHECKING:
    import jax

TOKENS, VOCAB = 16_384, 32_016
SEQUENCES = 4  # that the tokens are divided into
# Widths of the model. A CPU holds and computes the logits in fp32 at any width.
D_MODEL = {"v5p": 4096, "cpu": 256}


def plain(
    x_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """Returns the loss as the formula is written: a matmul in bf16 and all logits in fp32."""
    import jax.numpy as jnp
    import optax

    # 16,384 x 32,016 logits in fp32 are 2 GiB, and their gradient is as large.
    logits_BTV = jnp.matmul(x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
    return jnp.sum(losses_BT * weights_BT)


def lowered(form: str, chip: str) -> tuple[jax.stages.Lowered, list[jax.ShapeDtypeStruct]]:
    """Returns the loss with its gradients, lowered for a chip, and the shapes of its arguments.

    Args:
      form: `plain`, or an implementation of `kernels.cross_entropy`.
      chip: a key of `D_MODEL`.
    """
    import jax
    import jax.numpy as jnp

    from kernels import cross_entropy
    from kernels.static import chips

    d_model, length = D_MODEL[chip], TOKENS // SEQUENCES
    shapes = [
        jax.ShapeDtypeStruct((SEQUENCES, length, d_model), jnp.bfloat16),
        jax.ShapeDtypeStruct((d_model, VOCAB), jnp.float32),
        jax.ShapeDtypeStruct((SEQUENCES, length), jnp.int32),
        jax.ShapeDtypeStruct((SEQUENCES, length), jnp.float32),
    ]
    if chip != "cpu":
        shapes = chips.compile_inputs(chip, *shapes)

    def loss(*arrays: jax.Array) -> jax.Array:
        if form == "plain":
            return plain(*arrays)
        return cross_entropy.cross_entropy(*arrays, implementation=form)

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes), shapes


def estimate(form: str, chip: str) -> float:
    """Returns the temporary buffers in GiB, by the compiler; takes the arguments of `lowered`."""
    analysis = lowered(form, chip)[0].compile().memory_analysis()
    assert analysis is not None  # None only where a backend does not report memory
    return analysis.temp_size_in_bytes / 2**30


def measure(form: str, chip: str) -> float:
    """Returns the growth of the resident set in GiB in one run, results included."""
    import jax
    import jax.numpy as jnp

    program, shapes = lowered(form, chip)
    step, arguments = program.compile(), [jnp.ones(x.shape, x.dtype) for x in shapes]
    jax.block_until_ready(arguments)
    # Compiling and the arguments are in the peak already, so that the growth is the step's own.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(step(*arguments))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def show(
    title: str, function: Callable[[str, str], float], chip: str, forms: tuple[str, ...]
) -> None:
    """Prints a line per form with its GiB and how many times less than the plain form that is.

    Args:
      title: first words of a line.
      function: `estimate` or `measure`.
      chip: a key of `D_MODEL`.
      forms: `plain` first, then the others.
    """
    sizes: dict[str, float] = {}
    for form in forms:
        # The peak of a resident set never falls, so each form needs a fresh process.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            sizes[form] = process.submit(function, form, chip).result()
        saving = f"{sizes['plain'] / sizes[form]:.1f} x less"
        line = f"{title}, d_model {D_MODEL[chip]}, {form}: {sizes[form]:.3f} GiB, {saving}"
        print(line, flush=True)


def main() -> None:
    """Prints the memory of every form, on v5p where libtpu is installed, and on this CPU."""
    # Before JAX starts in the spawned processes, which inherit it.
    os.environ.update(ENVIRONMENT)
    if importlib.util.find_spec("libtpu"):
        show("compiler estimate v5p", estimate, "v5p", ("plain", "xla", "pallas_tpu"))
    show("measured on CPU", measure, "cpu", ("plain", "xla"))


if __name__ == "__main__":
    main()

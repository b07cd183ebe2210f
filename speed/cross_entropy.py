"""Memory of the loss, forward and backward, beside the plain form that holds all logits: 16,384 tokens, 32,016 words, bf16.

    PYTHONPATH=. python benchmarks/cross_entropy.py

TPU lines are the compiler's temporary buffers for one chip, beside arguments and results: compiler estimates, where the
`tpu` extra is installed. CPU lines are measured: what the resident set grows by at its peak, each form in a process of its own.
"""

import importlib.util
import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor

from kernels.static.chips import ENVIRONMENT

TOKENS, WORDS = 16_384, 32_016
D_MODEL = {"v5p": 4096, "cpu": 256}  # a CPU holds and computes the logits in fp32 at any width


def plain(x_BTD, head_DV, targets_BT, weights_BT):
    """The loss as one writes it down: products in bf16, logits in fp32."""
    import jax.numpy as jnp
    import optax

    logits_BTV = jnp.matmul(x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return jnp.sum(
        optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT) * weights_BT
    )


def lowered(form: str, chip: str):
    """Returns the loss and its gradients of activations in bf16 and a head in fp32, lowered for `chip`, and its arguments' shapes."""
    import jax
    import jax.numpy as jnp

    from kernels import cross_entropy
    from kernels.static import chips

    d_model = D_MODEL[chip]
    shape = lambda dtype, *dims: jax.ShapeDtypeStruct(dims, dtype)
    shapes = [shape(jnp.bfloat16, 4, TOKENS // 4, d_model), shape(jnp.float32, d_model, WORDS)]
    shapes += [shape(jnp.int32, 4, TOKENS // 4), shape(jnp.float32, 4, TOKENS // 4)]
    if chip != "cpu":
        shapes = chips.placed(chip, *shapes)
    loss = (
        plain
        if form == "plain"
        else lambda *a: cross_entropy.cross_entropy(*a, implementation=form)
    )
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes), shapes


def estimate(form: str, chip: str) -> float:
    """Returns GiB of temporary buffers."""
    return lowered(form, chip)[0].compile().memory_analysis().temp_size_in_bytes / 2**30


def measure(form: str, chip: str) -> float:
    """Returns by how many GiB the resident set grows in one run, results included."""
    import jax
    import jax.numpy as jnp

    program, shapes = lowered(form, chip)
    step, arguments = program.compile(), [jnp.ones(x.shape, x.dtype) for x in shapes]
    jax.block_until_ready(arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(step(*arguments))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def show(title: str, function, chip: str, forms: tuple[str, ...]) -> None:
    """Prints GiB of each form, the first the plain one, and how many times less the others take."""
    found = {}
    for form in forms:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            found[form] = alone.submit(function, form, chip).result()
        print(
            f"{title}, d_model {D_MODEL[chip]}, {form}: {found[form]:.3f} GiB, {found['plain'] / found[form]:.1f} x less",
            flush=True,
        )


def main() -> None:
    os.environ.update(ENVIRONMENT)
    if importlib.util.find_spec("libtpu"):
        show("compiler estimate v5p", estimate, "v5p", ("plain", "xla", "pallas_tpu"))
    show("measured on CPU", measure, "cpu", ("plain", "xla"))


if __name__ == "__main__":
    main()

"""Properties of every implementation of attention.

A new one joins `attention_cases.EVERY`, or `WHOLE_ROWS` if its queries must be the keys' tokens.
"""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from attention_cases import EVERY, WHOLE_ROWS, layout, oracle, problem, relative_error, solve

from kernels.flash_attention import IMPLEMENTATIONS, api, attention

TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}


@functools.cache
def random_problem(seed):
    """Returns a random problem, its solution in float64, and the tolerance of its dtype."""
    rng = np.random.default_rng(seed)
    dtype = ("float32", "bfloat16")[seed % 2]
    K, G, H = rng.choice([1, 2]), rng.choice([1, 2, 4]), rng.choice([64, 128])
    given = problem(
        seed,
        rng.integers(1, 3),
        rng.integers(386, 513),
        K * G,
        K,
        H,
        dtype,
        documents=seed % 3 != 2,
    )
    return given, oracle(*given), TOLERANCE[dtype]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("implementation", EVERY)
def test_agrees_with_float64(implementation, seed):
    given, exact, tolerance = random_problem(seed)
    for actual, expected in zip(solve(EVERY[implementation], *given), exact):
        assert relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize("implementation", WHOLE_ROWS)
def test_documents_do_not_leak(implementation):
    """Changing a document changes its outputs and gradients, and none of its neighbours'."""
    qkv, do, rows = problem(1, 2, 400, 2, 1, 64)
    second = rows[2] == 2
    changed = [np.where(second[..., None, None], x + 3, x) for x in qkv]
    new_do = np.where(second[..., None, None], do - 2, do)
    solution = functools.partial(solve, WHOLE_ROWS[implementation])
    for before, after in zip(solution(qkv, do, rows), solution(changed, new_do, rows)):
        np.testing.assert_array_equal(np.asarray(before)[~second], np.asarray(after)[~second])
        assert (np.asarray(before)[second] != np.asarray(after)[second]).any()


@pytest.mark.parametrize("implementation", EVERY)
def test_one_token_reads_a_cache_up_to_its_position(implementation):
    (q, k, v), _, _ = problem(0, 3, 16, 4, 2, 8)
    positions = np.array([[3], [9], [15]])
    slots = np.broadcast_to(np.arange(16), (3, 16))
    out = EVERY[implementation](q[:, :1], k, v, positions, slots)
    for row, (position,) in enumerate(positions):
        part = [x[row : row + 1, : position + 1] for x in (k, v)]
        alone = EVERY[implementation](
            q[row : row + 1, :1], *part, positions[row : row + 1], slots[:1, : position + 1]
        )
        np.testing.assert_allclose(out[row], alone[0], atol=1e-6)


def test_refuses_what_it_cannot_do():
    names = ("q_positions_BT", "kv_positions_BS", "q_segments_BT", "kv_segments_BS")
    rows = dict(zip(names, layout(np.random.default_rng(0), 1, 24)))
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3 key heads"):
        attention(*problem(0, 1, 24, 4, 3, 8)[0], **rows)
    with pytest.raises(ValueError, match="no attention implementation 'fast'; choose one of"):
        attention(*problem(0, 1, 24, 4, 2, 8)[0], **rows, implementation="fast")
    with pytest.raises(
        ValueError,
        match="cudnn attention: it does not compute in float32; use implementation='xla'",
    ):
        attention(*problem(0, 1, 24, 4, 2, 8)[0], **rows, implementation="cudnn")


@pytest.mark.parametrize(
    ("backend", "split", "dtype", "head_dim", "chosen"),
    [
        ("tpu", True, "bfloat16", 128, "pallas_tpu"),
        # Eight devices, and the compiler cannot split a kernel.
        ("tpu", False, "bfloat16", 128, "xla"),
        ("cpu", True, "bfloat16", 128, "xla"),
        ("gpu", False, "bfloat16", 128, "cudnn"),
        ("gpu", True, "float16", 64, "cudnn"),
        ("gpu", True, "float32", 64, "xla"),
        ("gpu", True, "bfloat16", 136, "xla"),
        ("gpu", True, "bfloat16", 12, "xla"),
    ],
)
def test_default_runs_on_these_devices(monkeypatch, backend, split, dtype, head_dim, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert api.default_implementation(split, np.dtype(dtype), head_dim) == chosen
    assert chosen in IMPLEMENTATIONS


@pytest.mark.parametrize(("capability", "most"), [("8.6", 128), ("9.0", 256), ("10.3", 256)])
def test_cudnn_takes_larger_heads_on_newer_gpus(monkeypatch, capability, most):
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert api.refusal("cudnn", "gpu", "bfloat16", most) == ""
    larger = api.refusal("cudnn", "gpu", "bfloat16", most + 8)
    assert larger == f"it has no head dim {most + 8}, only multiples of 8 up to {most}"

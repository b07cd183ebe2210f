"""The process that counts the cycles of a kernel."""

import json
import os

import pytest

from codellama_jax.compile import kernel_cycles
from codellama_jax.compile.hlo import Kernel


def test_the_counting_process_imports_from_the_users_folders_as_this_one_does(
    tmp_path, monkeypatch
):
    """With libtpu in such a folder no kernel was counted, as if none of them compiled."""
    (tmp_path / "only_here.py").write_text("CYCLES = [7, 8]\n")
    before = os.environ.get("PYTHONPATH")
    paths = [str(tmp_path), before] if before else [str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr(
        kernel_cycles, "COUNT", "import kernels, only_here; print(only_here.CYCLES)"
    )
    monkeypatch.setattr(kernel_cycles, "version", lambda package: "1")
    cycles = kernel_cycles.count.__wrapped__("flash_attention", "v5e", "{}", str(tmp_path))
    assert cycles == [7, 8]


@pytest.mark.parametrize(("dtype", "cache"), [("bf16", "bfloat16"), ("s8", "int8")])
def test_decode_attention_is_counted_for_its_cache_and_group(monkeypatch, dtype, cache):
    counted = []

    def count(package, chip, args, folder):
        counted.append((package, chip, json.loads(args)))
        return [10]

    monkeypatch.setattr(kernel_cycles, "count", count)
    cache_operand = dtype, (5, 100_000, 128)
    operands = (("s32", (5,)), ("bf16", (5, 8, 128)), cache_operand, cache_operand)
    kernel = Kernel("decode_attention", (5, 8, 128), operands, 1)
    # Five heads are three passes on each of the two cores of a v5p.
    assert kernel_cycles.cycles("v5p", kernel, "") == 6 * 10
    args = {"seq": 100_000, "head_dim": 128, "cache": cache, "group": 8}
    assert counted == [("decode_attention", "v5p", args)]

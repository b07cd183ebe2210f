"""The process that counts the cycles of a kernel."""

import os

from codellama_jax.compile import kernel_cycles


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

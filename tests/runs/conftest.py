"""Sources and a tiny experiment over them."""

import numpy as np
import pytest
from tiny_run import EXPERIMENT


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with sources and the experiment over them."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "sources").mkdir()
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    for i in range(40):
        lines = []
        for j in range(12):
            name, number = rng.choice(words), rng.integers(1000)
            comment = " ".join(rng.choice(words, 4))
            lines.append(f"def {name}_{j}(x):\n    return x + {number}  # {comment}\n\n")
        (folder / "sources" / f"f{i}.py").write_text("".join(lines))
    (folder / "tiny.py").write_text(EXPERIMENT.replace("SOURCES", str(folder / "sources")))
    return folder

"""Perplexity by context length on long files of code (Code Llama, section 3.3.1 and figure 4a)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codellama_jax.benchmarks.benchmark import files_of, text_of
from codellama_jax.benchmarks.settings import Options
from codellama_jax.errors import UserError

if TYPE_CHECKING:
    from codellama_jax.models.trained import Run

KINDS = (
    ".py",
    ".txt",
    ".c",
    ".cc",
    ".cpp",
    ".h",
    ".cs",
    ".go",
    ".java",
    ".js",
    ".php",
    ".rs",
    ".sh",
    ".ts",
)


def measure(run: Run | None, options: Options) -> dict[str, Any]:
    """Reads the first `examples` files that have the longest length.

    The paper's were at least 50 kB, 4M tokens together.
    """
    from codellama_jax.benchmarks.suites.perplexity import perplexity_by_length

    if run is None:
        raise UserError("perplexity is that of a model: pass --run")
    texts = (text_of(file) for file in files_of(options.data, KINDS))
    found = perplexity_by_length(run, texts, options.lengths, options.examples)
    files = next(iter(found.values()))["documents"]
    measures = {
        f"{length:,} {name}": measured[name]
        for length, measured in found.items()
        for name in ("perplexity", "last_block")
    }
    return {
        "benchmark": "perplexity",
        "tasks": files,
        "samples": files,
        "unit": "",
        "measures": measures,
    }

"""Writes README's table of verdicts from the results files in docs/results.

`python -m tools.verdicts` (or `make verdicts`) replaces the lines between the two markers. With
`--check` it writes nothing and exits with 1 if the table differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from codellama_jax.report.results_file import rewrite

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results"


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 if the table differs and `--check` is given."""
    text = README.read_text("utf-8")
    # The same text whatever the table was before, so that `--check` can compare.
    current = rewrite(text, RESULTS)
    if "--check" in arguments:
        return int(text != current)
    README.write_text(current, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

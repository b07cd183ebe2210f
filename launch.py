#!/usr/bin/env python3
"""The command line in a clone: `launch.py run quickstart`; `launch.py --help` lists the verbs."""

import sys

try:
    from codellama_jax.cli import main
except ModuleNotFoundError as error:  # a Python without the project's packages
    fix = "run `make quickstart` once, then .venv/bin/python instead of python"
    print(f"error: {sys.executable} has no package {error.name}: {fix}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main()

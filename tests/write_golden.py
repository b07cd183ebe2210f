"""Writes the resolved config of every experiment and scale to tests/golden, so that a change of what is trained shows in review."""

import json

from golden_cases import EXPERIMENTS
from paths import GOLDEN

import launch
from codellama_jax.config import to_dict

for name, scale in EXPERIMENTS:
    experiment, _ = launch.load_experiment(launch.Plan(name, scale))
    (GOLDEN / f"{name}-{scale}.json").write_text(json.dumps(to_dict(experiment), indent=1) + "\n")

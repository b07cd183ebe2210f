"""Writes the resolved config of every experiment and scale, and the identities of their stages.

They are in tests/golden, so that a change of what is trained shows in review. An identity that
changes makes finished stages train again.
"""

import json

from golden_cases import EXPERIMENTS, identities
from paths import GOLDEN

from codellama_jax.config import to_dict
from codellama_jax.runs.commands import PlanOptions, load_experiment

by_experiment = {}
for name, scale in EXPERIMENTS:
    experiment, _ = load_experiment(PlanOptions(name, scale))
    (GOLDEN / f"{name}-{scale}.json").write_text(json.dumps(to_dict(experiment), indent=1) + "\n")
    by_experiment[f"{name}-{scale}"] = identities(name, scale)
(GOLDEN / "identities.json").write_text(json.dumps(by_experiment, indent=1) + "\n")

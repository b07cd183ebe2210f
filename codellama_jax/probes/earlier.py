"""Reads the `config` of an older probes.json, from when all probes shared one flat config.

Answers in such a file are kept, so that an older run resumes without measuring them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The field of the flat config for each option of each probe.
FLAT_FIELDS = {
    "perplexity": {"lengths": "perplexity_lengths", "rows": "perplexity_rows"},
    "infilling": {"examples": "infilling_examples", "max_new_tokens": "max_new_tokens"},
    "infills": {"examples": "infills", "max_new_tokens": "max_new_tokens"},
    "infilling_kinds": {
        "kinds": "infilling_kinds",
        "examples": "kind_examples",
        "max_new_tokens": "max_new_tokens",
    },
    "key_retrieval": {
        "lengths": "key_lengths",
        "positions": "key_positions",
        "examples": "key_examples",
    },
    "line_ends": {
        "temperatures": "temperatures",
        "lines": "line_ends",
        "samples": "line_end_samples",
    },
    "completions": {"prompts": "completions", "max_new_tokens": "max_new_tokens"},
    "bigram": {},
}


def options_by_probe(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the options of each probe, by the probe's name, from a config of any version."""
    # Every flat config had this field, and no newer config has it.
    if "perplexity_lengths" not in config:
        return config
    options: dict[str, dict[str, Any]] = {}
    for name, fields in FLAT_FIELDS.items():
        options[name] = {}
        for option, field in fields.items():
            if field in config:
                options[name][option] = config[field]
    return options

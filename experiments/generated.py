"""Stages, models and pass@1 of the toy experiments on data/generated_functions.py.

The models have 0.2 million parameters, and their vocabulary has room for the family's words.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    MixtureConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.data_stage import DataStage
from codellama_jax.models.gpt import sizes as gpt_sizes
from codellama_jax.models.llama import sizes as llama_sizes
from codellama_jax.probes import HeldOutFunctions
from codellama_jax.report.findings import Panel, Results

PIECES = 384
SHAPE: dict[str, Any] = {"vocab_size": PIECES, "d_model": 64, "n_layers": 3, "head_dim": 16}
LLAMA = dataclasses.replace(llama_sizes.TOY["toy"], **SHAPE, d_ff=176)
# The same shape in both families, so that their results can be compared.
STARCODER = dataclasses.replace(gpt_sizes.TOY["toy"], **SHAPE, d_ff=256, init_std=64**-0.5)


def stage(
    model: ModelConfig,
    shares: dict[str, float],
    steps: int,
    init: str = "previous",
    peak_lr: float = 6e-3,
    objective: Any = "next_token",
    **data: Any,
) -> Stage:
    """Returns a stage on sources of the family.

    Args:
      model: LLAMA or STARCODER.
      shares: of the sources, by name.
      steps: of 2,304 positions.
      init: `scratch` or `previous`.
      peak_lr: the learning rate after the warm-up.
      objective: as in `Stage`.
      **data: other fields of `DataConfig`.
    """
    fields = {"seq_len": 192, "batch_size": 12, **data}
    return Stage(
        init=init,
        model=model,
        data=DataConfig(mixture=MixtureConfig(others=shares), **fields),
        optimizer=OptimizerConfig(peak_lr, max(1, steps // 10), final_fraction=0.1, eps=1e-8),
        steps=steps,
        eval_rows=16,
        eval_every=max(1, steps // 2),
        checkpoint_every=steps,
        log_every=20,
        objective=objective,
    )


def toy_experiment(
    name: str,
    arms: dict[str, dict[str, Stage]],
    chat: Literal["llama2", "pangu_coder2"],
    data_stages: dict[str, DataStage] | None = None,
    stages: Literal["all", "last"] = "last",
) -> Experiment:
    """Returns an experiment of five seeds that evaluates held-out functions.

    Args:
      name: of the experiment.
      arms: their stages, which read records, programs or conversations.
      chat: the format of the questions.
      data_stages: stages that write data, by the name of their source.
      stages: after which of them pass@1 is measured.
    """
    sources = {
        "conversations": "functions:questions",
        "programs": "functions:programs",
        "records": "functions:records",
    }
    return Experiment(
        name,
        "toy",
        arms,
        TokenizerConfig(pieces=PIECES),
        CorpusConfig(others=sources),
        probes={"held_out_functions": HeldOutFunctions(chat, stages=stages)},
        seeds=5,
        data_stages=data_stages or {},
    )


def pass_at_1(results: Results, index: int = -1) -> dict[str, list[float]]:
    """Returns the share of held-out functions that pass, by arm and seed, after a stage."""
    shares = {}
    for arm, seeds in results.items():
        shares[arm] = [chain[index].probe("held_out_functions")["pass@1"] for chain in seeds]
    return shares


def panel(shares: dict[str, list[float]]) -> Panel:
    """Returns a diagram of pass@1 by arm."""
    lines = {}
    for place, (arm, values) in enumerate(shares.items()):
        # One dot per seed at the place of its arm.
        lines[arm] = [[(float(place), value)] for value in values]
    return Panel("arm", "pass@1 of held-out functions", lines, tuple(shares))

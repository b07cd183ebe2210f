"""StarCoder and SantaCoder: multi-query GPT models that learn to infill in packed sequences.

Claim     StarCoder: 33.6 / 45.8 / 79.8 % pass@1 / 10 / 100 on HumanEval (Shen et al. 2023, Table
          2), after 1T tokens of 80 languages and 35B of Python. SantaCoder: infilling costs 2 to 4
          points of HumanEval, multi-query attention 1 to 4.
Expected  toy: the validation loss of the first stage falls to at most 0.7 of its start, and the
          stage on Python lowers it further.
Cost      toy: 0.7M tokens, a few minutes on two cores. The published run took 512 A100;
          `launch.py plan starcoder --scale 15.5b` prints FLOPs.
Command   python launch.py run experiments/starcoder.py --scale toy
          python launch.py run experiments/starcoder.py --scale 15.5b --out gs://BUCKET/starcoder
          --tokenizer.path tokenizer.json --corpus.code gs://BUCKET/code
          --corpus.python gs://BUCKET/python

Li et al. 2023, Ben Allal et al. 2023 and the scripts of BigCode's Megatron-LM give the numbers. The
Python stage warms up over 500 steps in its script, over 1,000 in a survey. Left out: dropout of
attention weights (0.1), which the fused attention kernels do not have. Documents of a sequence do
not see each other here; in the published runs they do. The mixture of languages is that of the
corpus, with one source for all of them.
"""

import dataclasses

from codellama_jax.config import (
    DataConfig,
    Experiment,
    InfillingConfig,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.sizes import SANTACODER, STARCODER, TOY
from codellama_jax.models.llama.sizes import choose
from codellama_jax.probes import Completions, Infilling
from experiments import recipe

INFILLING = InfillingConfig(rate=0.5, form="starcoder")
SIZES = STARCODER | {"santacoder": SANTACODER["1.1b"]}
# Sequences per batch, and steps.
BATCH = {"1b": 128, "15.5b": 512, "santacoder": 192}
STEPS = {"1b": 1_000_000, "15.5b": 250_000, "santacoder": 600_000}
RATE = {"1b": 4e-4, "15.5b": 3e-4, "santacoder": 2e-4}
WARMUP = {"1b": 2_000, "15.5b": 2_000, "santacoder": 12_000}  # SantaCoder: 2 % of its steps


def experiment(scale: str = "15.5b") -> Experiment:
    """Returns training on all languages, and for StarCoder 15.5B the stage on Python after it."""
    if scale == "toy":
        return _toy()
    model = dataclasses.replace(
        choose(SIZES | {"toy": TOY["toy"]}, scale), dropout=0.1, embedding_dropout=0.1
    )
    stages = {"base": _base(scale, model)}
    if scale == "15.5b":
        # SantaCoder and the smaller StarCoder have no such stage.
        stages["python"] = _python(model)
    return Experiment("starcoder", scale, {"main": stages}, TokenizerConfig("tokenizer.json"))


def _base(scale: str, model: GPTConfig) -> Stage:
    return Stage(
        init="scratch",
        model=model,
        data=DataConfig(
            seq_len=model.n_positions,
            batch_size=BATCH[scale],
            mixture=MixtureConfig(code=1.0),
            infilling=INFILLING,
        ),
        optimizer=OptimizerConfig(
            peak_lr=RATE[scale], warmup_steps=WARMUP[scale], final_fraction=0.1, eps=1e-8
        ),
        steps=STEPS[scale],
    )


def _python(model: GPTConfig) -> Stage:
    return Stage(
        model=model,
        data=DataConfig(
            seq_len=model.n_positions,
            batch_size=512,
            mixture=MixtureConfig(python=1.0),
            infilling=INFILLING,
        ),
        optimizer=OptimizerConfig(peak_lr=5e-5, warmup_steps=500, final_fraction=0.1, eps=1e-8),
        steps=8_500,
    )


def _toy() -> Experiment:
    """Returns both stages at a size that a laptop trains: code with prose, then Python alone."""
    model = choose(TOY, "toy")
    base = recipe.toy_gpt_stage(model, recipe.CODE, infilling=INFILLING)
    python = recipe.toy_gpt_stage(
        model, MixtureConfig(python=1.0), infilling=INFILLING, steps=100, init="previous"
    )
    probes = {
        "infilling": Infilling(examples=128, max_new_tokens=32),
        "completions": Completions(("def mean(xs):\n", "import os\nimport sys\n")),
    }
    return recipe.toy_gpt_experiment(
        "starcoder", {"main": {"base": base, "python": python}}, "starcoder", probes
    )

"""Codex: code training of GPT models, from GPT or from scratch, and Codex-D for docstrings.

Claim     Section 2.2: a start from GPT gives no lower final loss than one from scratch, but
          converges faster. Table 1, pass@1 / 10 / 100 on HumanEval: 2.00 / 3.62 / 8.58 % for 12M to
          28.81 / 46.81 / 72.31 % for 12B.
Expected  the arm `gpt` has the lower loss early in its code stage; its lead shrinks until the end.
          Codex-D: the loss of docstrings falls.
Cost      toy: 1.6M tokens, a few minutes on two cores. `launch.py plan codex --scale 12b` prints
          that of a published size.
Command   python launch.py run experiments/codex.py --scale toy
          python launch.py run experiments/codex.py --scale 12b --out gs://BUCKET/codex
          --general.init run:GPT_RUN --tokenizer.path vocab.json --tokenizer.kind codex
          --corpus.python gs://BUCKET/python

Chen et al. 2021 give 175 steps of warm-up, a cosine, 100B tokens, Adam and weight decay, and the
learning rate of the GPT model of each size (Brown et al. 2020, Table 2.1). Derived or chosen here:
batches of 2M tokens, since 175 of them are GPT-3's warm-up; a final rate of 10 %, as GPT-3; the
shapes and rates of 12M, 25M and 42M; for Codex-D a tenth of the rate and 10B tokens, as the paper
has it for Codex-S. Documents of a sequence do not see each other; in GPT-3 they do.
"""

import dataclasses
from typing import Literal

from codellama_jax.config import (
    DataConfig,
    Experiment,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.sizes import CODEX, TOY
from codellama_jax.models.llama.sizes import choose
from experiments import recipe

RATE = {
    "12m": 6e-4,
    "25m": 6e-4,
    "42m": 6e-4,
    "85m": 6e-4,
    "300m": 3e-4,
    "679m": 2.5e-4,
    "2.5b": 1.6e-4,
    "12b": 1e-4,
}
BATCH_TOKENS = 2**21
CODE_STEPS = 47_684  # 100B tokens
DOCSTRING_STEPS = 4_768  # 10B tokens
PYTHON = MixtureConfig(python=1.0)


def experiment(scale: str = "12b") -> Experiment:
    """Returns training from GPT, from scratch, and Codex-D after the former."""
    if scale == "toy":
        return _toy()
    model = choose(CODEX | {"toy": TOY["toy"]}, scale)
    code = _stage(model, RATE[scale], CODE_STEPS, "previous")
    # GPT is trained already: a stage of 0 steps loads it. `run:gpt` is a placeholder.
    general = dataclasses.replace(code, init="run:gpt", steps=0)
    # Codex-D continues from the code model at a lower rate, with the docstring after the code.
    docstrings = _stage(model, RATE[scale] / 10, DOCSTRING_STEPS, "previous", "code_to_docstring")
    # Stages that several arms have are trained once, here `general` and `code`.
    arms = {
        "gpt": {"general": general, "code": code},
        "scratch": {"code": dataclasses.replace(code, init="scratch")},
        "codex_d": {"general": general, "code": code, "docstrings": docstrings},
    }
    return Experiment("codex", scale, arms, TokenizerConfig("vocab.json", kind="codex"))


def _stage(
    model: GPTConfig,
    rate: float,
    steps: int,
    init: str,
    examples: Literal["documents", "code_to_docstring"] = "documents",
) -> Stage:
    return Stage(
        init=init,
        model=model,
        data=DataConfig(
            seq_len=model.n_positions,
            batch_size=BATCH_TOKENS // model.n_positions,
            mixture=PYTHON,
            examples=examples,
        ),
        optimizer=OptimizerConfig(peak_lr=rate, warmup_steps=175, final_fraction=0.1, eps=1e-8),
        steps=steps,
    )


def _toy() -> Experiment:
    """Returns the same arms at a size that a laptop trains, GPT's part played by prose."""
    model = dataclasses.replace(TOY["toy"], n_kv_heads=TOY["toy"].n_heads)
    general = recipe.toy_gpt_stage(model, recipe.GENERAL, steps=300)
    code = recipe.toy_gpt_stage(model, PYTHON)
    after = dataclasses.replace(code, init="previous")
    docstrings = recipe.toy_gpt_stage(
        model, PYTHON, steps=100, init="previous", examples="code_to_docstring", block_chars=0
    )
    arms = {
        "gpt": {"general": general, "code": after},
        "scratch": {"code": code},
        "codex_d": {"general": general, "code": after, "docstrings": docstrings},
    }
    return recipe.toy_gpt_experiment("codex", arms, "codex")

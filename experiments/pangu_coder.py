"""PanGu-Coder: code first, then functions from their docstrings, with loss on the code alone.

Claim     Christopoulou et al. 2022: 17.07 % pass@1 on HumanEval for 317M, above Codex 300M (13.17)
          and 679M (16.22); 23.78 % for 2.6B.
Expected  toy: the second stage lowers the loss of code after its docstring.
Cost      toy: 0.8M tokens, a few minutes on two cores. `launch.py plan pangu_coder --scale 2.6b`
          prints that of a published size.
Command   python launch.py run experiments/pangu_coder.py --scale toy
          python launch.py run experiments/pangu_coder.py --scale 2.6b --out gs://BUCKET/pangu
          --tokenizer.path tokenizer.model --corpus.python gs://BUCKET/python

The paper itself was not available; a survey gives a context of 1,024, batches of 256, Adam with
0.9 / 0.95, weight decay of 0.01, a cosine and 387B tokens. Chosen here: GPT-3's learning rates for
models of this size, 1 % of the steps as warm-up, a final rate of 10 %, and half of the tokens for
each stage. The second stage of the paper also trains a masked language model on the docstrings,
which is left out.
"""

import dataclasses

from codellama_jax.config import (
    DataConfig,
    Experiment,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.gpt.sizes import PANGU_CODER, TOY
from codellama_jax.models.llama.sizes import choose
from experiments import recipe

RATE = {"317m": 3e-4, "2.6b": 1.6e-4}
STEPS = 738_144  # half of 387B tokens
PYTHON = MixtureConfig(python=1.0)


def experiment(scale: str = "2.6b") -> Experiment:
    """Returns both stages of a published size."""
    if scale == "toy":
        return _toy()
    model = choose(PANGU_CODER | {"toy": TOY["toy_top"]}, scale)
    code = Stage(
        init="scratch",
        model=model,
        data=DataConfig(seq_len=1024, batch_size=256, mixture=PYTHON),
        optimizer=OptimizerConfig(
            peak_lr=RATE[scale],
            warmup_steps=STEPS // 100,
            final_fraction=0.1,
            eps=1e-8,
            weight_decay=0.01,
        ),
        steps=STEPS,
    )
    # Equal to the first stage but for the examples: the docstring is given, the code learned.
    functions = dataclasses.replace(
        code,
        init="previous",
        data=dataclasses.replace(code.data, examples="docstring_to_code"),
    )
    stages = {"code": code, "functions": functions}
    return Experiment("pangu_coder", scale, {"main": stages}, TokenizerConfig("tokenizer.model"))


def _toy() -> Experiment:
    """Returns both stages at a size that a laptop trains, with a trained SentencePiece model."""
    model = TOY["toy_top"]
    code = recipe.toy_gpt_stage(model, PYTHON)
    # block_chars=0 keeps files complete: a block may split a function from its docstring.
    functions = recipe.toy_gpt_stage(
        model, PYTHON, steps=150, init="previous", examples="docstring_to_code", block_chars=0
    )
    stages = {"code": code, "functions": functions}
    return recipe.toy_gpt_experiment("pangu_coder", {"main": stages}, "sentencepiece")

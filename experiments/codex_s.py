"""Codex-S: supervised fine-tuning of Codex on functions with docstrings that are known to work.

Claim     Section 4: for 12B, pass@1 on HumanEval rises from 28.81 to 37.7 %; averaged over sizes by
          6.5 points, pass@100 by 15.1 points.
Expected  the validation loss of completions falls and then stays; pass@1 above that of Codex.
Cost      toy: minutes on two cores. `launch.py plan codex_s --scale 12b` prints that of a published
          size.
Command   python launch.py trace-functions data/traced --projects ~/src/toolz --model runs/codex
          python launch.py run experiments/codex_s.py --scale toy --codex-s.init run:runs/codex-toy
          --corpus.others.problems data/traced/dataset.jsonl --tokenizer.kind codex
          --tokenizer.path runs/codex-toy/tokenizer.json
          python launch.py run experiments/codex_s.py --scale 12b --out gs://BUCKET/codex_s
          --codex-s.init run:gs://BUCKET/codex --tokenizer.path vocab.json
          --corpus.others.problems prepared:gs://BUCKET/problems

The paper's problems are 10,000 of contests and 40,000 traced functions; `trace-functions` makes
such ones of the second kind. As published: a tenth of Codex's learning rate with its schedule, loss
on the solution only, and training until the validation loss stays, within 10B tokens. Here the
stage has at most these steps. Stop it when the validation loss no longer falls, and take the
checkpoint with the lowest one, as `run:gs://BUCKET/codex_s@STEP`: it is kept for 1,000 further
steps, so that 21 checkpoints take about 3 TB for 12B. The paper pads prompts on the left so that
solutions align; in packed sequences attention and positions begin anew with each problem, and
nothing has to be aligned.
"""

import dataclasses

from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.gpt.sizes import CODEX, TOY
from codellama_jax.models.llama.sizes import choose
from experiments import recipe
from experiments.codex import BATCH_TOKENS, RATE

PROBLEMS = MixtureConfig(others={"problems": 1.0})
CORPUS = CorpusConfig(others={"problems": "problems.jsonl"})
TOY_RATE = 1e-3  # of the toy Codex that starts from a general model
MOST_STEPS = 4_768  # 10B tokens
EVAL_EVERY = 50  # steps: often enough to see where the validation loss stays
PATIENCE = 1_000  # steps for which a checkpoint is kept, so that a later loss can show it as best
INIT = "run:codex"  # a placeholder: --codex-s.init names the trained model


def experiment(scale: str = "12b") -> Experiment:
    """Returns the fine-tuning that follows Codex of a size."""
    model = choose(CODEX | {"toy": TOY["toy"]}, scale)
    if scale == "toy":
        return _toy()
    data = DataConfig(
        seq_len=model.n_positions,
        batch_size=BATCH_TOKENS // model.n_positions,
        mixture=PROBLEMS,
        examples="completions",
    )
    stage = Stage(
        init=INIT,
        model=model,
        data=data,
        optimizer=OptimizerConfig(
            peak_lr=RATE[scale] / 10, warmup_steps=175, final_fraction=0.1, eps=1e-8
        ),
        steps=MOST_STEPS,
        eval_every=EVAL_EVERY,
        checkpoint_every=EVAL_EVERY,
        # That of the best step too, beside those of the steps after it.
        keep_checkpoints=PATIENCE // EVAL_EVERY + 1,
    )
    arms = {"codex_s": {"codex_s": stage}}
    return Experiment("codex_s", scale, arms, TokenizerConfig("vocab.json", kind="codex"), CORPUS)


def _toy() -> Experiment:
    """Returns the same stage after the experiment `codex` at toy scale."""
    model = dataclasses.replace(TOY["toy"], n_kv_heads=TOY["toy"].n_heads)
    # Docstrings with examples make prompts longer than the 256 tokens of other toy stages.
    data = {"examples": "completions", "block_chars": 0, "seq_len": model.n_positions}
    stage = recipe.toy_gpt_stage(model, PROBLEMS, steps=100, init=INIT, **data)
    # Every evaluated step is a checkpoint, and all of them are kept.
    saved = stage.steps // stage.eval_every
    stage = dataclasses.replace(stage, checkpoint_every=stage.eval_every, keep_checkpoints=saved)
    # As at the published sizes: a tenth of the rate of the model that it starts from.
    optimizer = dataclasses.replace(stage.optimizer, peak_lr=TOY_RATE / 10)
    stage = dataclasses.replace(stage, optimizer=optimizer)
    tokenizer = TokenizerConfig(pieces=1024 - 16, kind="codex")  # as that of `codex`
    return Experiment("codex_s", "toy", {"codex_s": {"codex_s": stage}}, tokenizer, CORPUS)

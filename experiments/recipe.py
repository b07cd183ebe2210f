"""Stages and arms that several experiments share, so that an experiment file shows what differs.

The stages of the paper (sections 2.2 to 2.4, Table 1) are here once, for every published size. The
stages of the ablations are those of 7B, or toy and small ones (LOCAL) that one machine trains.
Ablations share them exactly: a stage that two of them have is trained once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    InfillingConfig,
    MixtureConfig,
    OptimizerConfig,
    Probe,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.sizes import CODE_LLAMA, SMALL, TOY, choose

if TYPE_CHECKING:
    from codellama_jax.report.results import Results, StageResult

# Lengths that a trend compares, in eighths of a stage: each twice the one before it.
EIGHTHS, LENGTHS = 8, (1, 2, 4, 8)

# Llama 2's own mixture is not published; the toy's general model needs some text to start from.
GENERAL = MixtureConfig(code=0.1, discussions=0.3, language=0.6)
CODE = MixtureConfig(code=0.85, discussions=0.08, language=0.07)  # Table 1
# Section 2.3: 90 % of the documents are split, half of them in each order.
PLAIN, INFILLING = InfillingConfig(rate=0.0), InfillingConfig(rate=0.9)

# Kinds of middles (Table 14).
KINDS: tuple[Literal["single-line", "multi-line", "random-span"], ...] = (
    "single-line",
    "multi-line",
    "random-span",
)
TOY_TOKENIZER = TokenizerConfig(pieces=1024 - 16)  # 16 entries are left for the sentinels

# 500B tokens, 1T for 70B, in batches of 4M.
CODE_STEPS = {"7b": 119_209, "13b": 119_209, "34b": 119_209, "70b": 238_419}
# Llama 2's rates: section 2.2 reports that a smaller one was worse for 7B.
CODE_RATE = {"7b": 3e-4, "13b": 3e-4, "34b": 1.5e-4, "70b": 1.5e-4}
# Sequences of 16,384 tokens: 2M tokens per batch, 1M for the larger two.
LONG_BATCH = {"7b": 128, "13b": 128, "34b": 64, "70b": 64}


# The toy of the ablations has 0.2 million parameters, fewer than the quickstart's, so that it reads
# tens of tokens for each of them in minutes, as the paper's models did in their training.
TOY_SHAPE: dict[str, Any] = {
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "head_dim": 32,
    "d_ff": 176,
}


@dataclasses.dataclass(frozen=True)
class Local:
    """The numbers of the ablations at a scale that one machine trains, on its own sources."""

    pieces: int  # of the tokenizer, without the 16 entries of the sentinels
    max_files: int  # of a source; 0 reads all
    batch: int  # sequences of 256 tokens
    general_steps: int
    code_steps: int
    trend_steps: int  # of the code training with a trend
    peak_lr: float
    warmup_steps: int
    eval_every: int
    long_batch: int  # sequences of 1,024 tokens
    long_steps: int
    long_lr: float
    seeds: int


LOCAL = {
    # A stage of a million positions. Several times the files that it reads.
    "toy": Local(1008, 700, 4, 1000, 1000, 6400, 4e-3, 60, 100, 4, 30, 5e-4, 5),
    # 8M and 33M positions; a trend is over the code training itself.
    "small": Local(4080, 0, 32, 1000, 4000, 4000, 2e-3, 100, 500, 16, 60, 2.5e-4, 1),
}


def paper_code(
    scale: str, model: LlamaConfig, infilling: InfillingConfig, init: str = "run:llama2"
) -> Stage:
    """Returns the paper's code training: 500B tokens of mostly code, 1T for 70B."""
    # `run:llama2` is a placeholder: --code.init names the imported weights.
    return Stage(
        init=init,
        model=model,
        data=DataConfig(seq_len=4096, batch_size=1024, mixture=CODE, infilling=infilling),
        optimizer=OptimizerConfig(peak_lr=CODE_RATE[scale], warmup_steps=1000),
        steps=CODE_STEPS[scale],
    )


def paper_long_context(
    scale: str,
    model: LlamaConfig,
    steps: int,
    mixture: MixtureConfig = CODE,
    infilling: InfillingConfig = INFILLING,
) -> Stage:
    """Returns the paper's long-context fine-tuning (section 2.4).

    Args:
      scale: a published size, which decides the batch.
      model: with the RoPE base of this stage; the paper's is 1e6.
      steps: they differ between Code Llama and Code Llama - Python.
      mixture: that of the stage before.
      infilling: that of the stage before.
    """
    batch = LONG_BATCH[scale]
    return Stage(
        model=model,
        data=DataConfig(seq_len=16_384, batch_size=batch, mixture=mixture, infilling=infilling),
        optimizer=OptimizerConfig(peak_lr=2e-5, warmup_steps=100),
        steps=steps,
    )


def with_larger_base(model: LlamaConfig) -> LlamaConfig:
    """Returns the model with the RoPE base of the long-context stage, 1e6."""
    return dataclasses.replace(model, rope_theta=1e6)


def model(scale: str) -> LlamaConfig:
    """Returns the model of `toy`, `small` or `7b`. Raises UserError listing them otherwise."""
    toy = dataclasses.replace(TOY["toy"], **TOY_SHAPE)
    return choose({"toy": toy} | SMALL | {"7b": CODE_LLAMA["7b"]}, scale)


def general(scale: str) -> Stage:
    """Returns a model of mostly natural language, in the role of Llama 2."""
    if scale in LOCAL:
        return _local_stage(scale, GENERAL, LOCAL[scale].general_steps, init="scratch")
    # Llama 2 is trained already: a stage of 0 steps loads it, so that the arms have equal chains.
    return dataclasses.replace(code(scale, PLAIN), init="run:llama2", steps=0)


def code(scale: str, infilling: InfillingConfig = INFILLING) -> Stage:
    """Returns the code training that follows the general model."""
    if scale in LOCAL:
        return _local_stage(scale, CODE, LOCAL[scale].code_steps, infilling=infilling)
    return paper_code(scale, model(scale), infilling, init="previous")


def trend_code(scale: str, infilling: InfillingConfig = INFILLING) -> Stage:
    """Returns code training for a trend over its length, 6.4 times as long at toy scale.

    The checkpoints after LENGTHS of it are kept. At larger scales it is the stage of `code`.
    """
    stage = code(scale, infilling)
    if scale in LOCAL:
        steps = LOCAL[scale].trend_steps
        stage = dataclasses.replace(stage, steps=steps, eval_every=steps // EIGHTHS)
    every = stage.steps // EIGHTHS
    # One more than EIGHTHS where the steps are no multiple of it: the last step is saved too.
    saved = math.ceil(stage.steps / every)
    return dataclasses.replace(stage, checkpoint_every=every, keep_checkpoints=saved)


def lengths(stage: Stage) -> tuple[int, ...]:
    """Returns the steps of a stage of `trend_code` that a trend compares: LENGTHS of it."""
    # The last length is the end of the stage, also where its steps are no multiple of EIGHTHS.
    every = stage.steps // EIGHTHS
    return (*(every * length for length in LENGTHS[:-1]), stage.steps)


def long_context(
    scale: str, infilling: InfillingConfig = INFILLING, theta: float = 1e6, scaling: float = 1.0
) -> Stage:
    """Returns the long-context stage: sequences four times as long, at a small learning rate."""
    # Only RoPE differs from the code stage's model, so that its weights are continued.
    longer = dataclasses.replace(model(scale), rope_theta=theta, rope_scaling=scaling)
    if scale not in LOCAL:
        return paper_long_context(scale, longer, steps=3000, infilling=infilling)
    local = LOCAL[scale]
    return Stage(
        model=longer,
        data=DataConfig(
            seq_len=1024, batch_size=local.long_batch, mixture=CODE, infilling=infilling
        ),
        optimizer=OptimizerConfig(peak_lr=local.long_lr, warmup_steps=5),
        steps=local.long_steps,
        eval_rows=16,
        eval_every=local.long_steps,
        checkpoint_every=local.long_steps,
        log_every=5,
    )


def ablation(
    name: str,
    scale: str,
    arms: dict[str, dict[str, Stage]],
    probes: Mapping[str, Probe] | None = None,
    sources: Mapping[str, str] | None = None,
) -> Experiment:
    """Returns an experiment that probes the last model of each arm.

    It has five seeds at toy scale, so that its verdict has an interval, and one at others.

    Args:
      name: of the experiment.
      scale: `toy`, `small` or `7b`.
      arms: their stages.
      probes: by name.
      sources: paths of further sources by name.
    """
    # The stages before are shared between arms: their probes would only repeat each other.
    of_last: dict[str, Probe] = {}
    for key, probe in (probes or {}).items():
        of_last[key] = dataclasses.replace(probe, stages="last")
    if scale not in LOCAL:
        return Experiment(name, scale, arms, TokenizerConfig("tokenizer.model"), probes=of_last)
    local = LOCAL[scale]
    tokenizer = TokenizerConfig(pieces=local.pieces)
    corpus = CorpusConfig(max_files=local.max_files, others=dict(sources or {}))
    return Experiment(name, scale, arms, tokenizer, corpus, probes=of_last, seeds=local.seeds)


def toy_gpt_stage(
    model: GPTConfig,
    mixture: MixtureConfig = CODE,
    steps: int = 600,
    init: str = "scratch",
    **data: Any,
) -> Stage:
    """Returns a stage of a toy GPT model, without dropout.

    Args:
      model: of `models/gpt/sizes.py`.
      mixture: shares of the sources.
      steps: a later stage takes fewer, and a lower peak rate.
      init: `scratch`, or `previous` for a later stage.
      **data: other fields of `DataConfig`.
    """
    is_first = init == "scratch"
    fields = {"seq_len": 256, "batch_size": 4, "block_chars": 250, **data}
    return Stage(
        init=init,
        model=model,
        data=DataConfig(mixture=mixture, **fields),
        optimizer=OptimizerConfig(
            # A model that continues takes a lower rate than one that is drawn at random.
            peak_lr=3e-3 if is_first else 1e-3,
            warmup_steps=steps // 10,
            final_fraction=0.1,
            eps=1e-8,
        ),
        steps=steps,
        eval_every=max(1, steps // 4),
        checkpoint_every=max(1, steps // 2),
        log_every=20,
    )


def toy_gpt_experiment(
    name: str,
    arms: dict[str, dict[str, Stage]],
    kind: Literal["sentencepiece", "codex", "codegeex", "starcoder"],
    probes: Mapping[str, Probe] | None = None,
) -> Experiment:
    """Returns a toy experiment on the Python sources of this machine.

    Args:
      name: of the experiment.
      arms: their stages.
      kind: of the tokenizer that is trained, as in `TokenizerConfig`.
      probes: the measurements after each stage, by name.
    """
    # StarCoder's sentinels are among its pieces; other kinds leave 16 entries for them.
    pieces = 1024 if kind == "starcoder" else 1024 - 16
    tokenizer = TokenizerConfig(pieces=pieces, kind=kind)
    corpus = CorpusConfig(max_files=700)  # several times what the stages read
    return Experiment(name, "toy", arms, tokenizer, corpus, probes=dict(probes or {}))


def losses(results: Results) -> dict[str, list[float]]:
    """Returns the final validation loss of each seed, by arm, in nats per token."""
    by_arm = {}
    for arm, seeds in results.items():
        by_arm[arm] = [chain[-1].loss for chain in seeds]
    return by_arm


def mean_of(stage: StageResult, kind: str, order: str, measure: str) -> float:
    """Returns the mean of a measure of the probe `infilling_kinds` over its examples."""
    return fmean(stage.probe("infilling_kinds")[kind][order][measure])


def curves(results: Results) -> dict[str, list[list[tuple[float, float]]]]:
    """Returns the validation loss over the tokens of the last stage, by arm and seed."""
    by_arm = {}
    for arm, seeds in results.items():
        by_arm[arm] = [chain[-1].curve for chain in seeds]
    return by_arm


def tokens_by_length(results: Results, arm: str) -> list[float]:
    """Returns the tokens that an arm of `trend_code` has read after each length, seeds averaged."""
    by_seed = []
    for chain in results[arm]:
        last = chain[-1]
        # Tokens at a step differ between seeds, because packing leaves other padding.
        by_seed.append([last.tokens_at(step) for step in lengths(last.stage)])
    return list(map(fmean, zip(*by_seed, strict=True)))


def losses_by_length(results: Results, arm: str) -> list[list[float]]:
    """Returns the validation loss of an arm of `trend_code` after each length, by seed."""
    by_seed = []
    for chain in results[arm]:
        last = chain[-1]
        by_seed.append([last.loss_at(step) for step in lengths(last.stage)])
    return by_seed


def _local_stage(
    scale: str,
    mixture: MixtureConfig,
    steps: int,
    init: str = "previous",
    infilling: InfillingConfig = PLAIN,
) -> Stage:
    """Returns a stage of sequences of 256 tokens.

    Args:
      scale: `toy` or `small`.
      mixture: shares of the sources.
      steps: of the stage.
      init: `scratch` or `previous`.
      infilling: of its documents.
    """
    local = LOCAL[scale]
    return Stage(
        init=init,
        model=model(scale),
        # Blocks of 250 characters fit one context, so that they can be split for infilling.
        data=DataConfig(
            seq_len=256,
            batch_size=local.batch,
            mixture=mixture,
            infilling=infilling,
            block_chars=250,
        ),
        optimizer=OptimizerConfig(peak_lr=local.peak_lr, warmup_steps=local.warmup_steps),
        steps=steps,
        eval_rows=64,
        eval_every=local.eval_every,
        checkpoint_every=500,
        log_every=20,
    )

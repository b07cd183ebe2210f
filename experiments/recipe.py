"""The stages that the ablations of the paper vary, at the scale of a laptop and at 7B. What an experiment does not vary is here.

At 7B they are those of sections 2.2 to 2.4 and Table 1; the general model is Llama 2, trained already. The toy's are as long as a
laptop trains in a minute. All ablations share them to the letter, so that a stage is trained once for all.
"""

from __future__ import annotations

import dataclasses

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
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.sizes import CODE_LLAMA, TOY, choose

GENERAL = MixtureConfig(
    code=0.1, discussions=0.3, language=0.6
)  # of the toy; Llama 2's own is not published
CODE = MixtureConfig(code=0.85, discussions=0.08, language=0.07)
PLAIN, INFILLING = InfillingConfig(rate=0.0), InfillingConfig(rate=0.9)


def model(scale: str) -> LlamaConfig:
    """Returns the model of `toy` or `7b`. Raises UserError listing them for another name."""
    return choose(TOY | {"7b": CODE_LLAMA["7b"]}, scale)


def general(scale: str) -> Stage:
    """A model of mostly natural language: Llama 2's place."""
    if scale == "toy":
        return _toy_stage(GENERAL, rate=4e-3, init="scratch")
    return dataclasses.replace(code(scale, PLAIN), init="run:llama2", steps=0)


def code(scale: str, infilling: InfillingConfig = INFILLING) -> Stage:
    """The code training that follows it."""
    if scale == "toy":
        return _toy_stage(CODE, rate=4e-3, infilling=infilling)
    data = DataConfig(seq_len=4096, batch_size=1024, mixture=CODE, infilling=infilling)
    return Stage(
        model(scale), data, OptimizerConfig(peak_lr=3e-4, warmup_steps=1000), steps=119_209
    )  # 500B tokens


def long_context(
    scale: str, infilling: InfillingConfig = INFILLING, theta: float = 1e6, scaling: float = 1.0
) -> Stage:
    """Rows four times as long, with a larger RoPE base, at a small rate."""
    longer = dataclasses.replace(model(scale), rope_theta=theta, rope_scaling=scaling)
    if scale == "toy":
        data = DataConfig(seq_len=1024, batch_size=4, mixture=CODE, infilling=infilling)
        optimizer = OptimizerConfig(peak_lr=5e-4, warmup_steps=5)
        return Stage(
            longer,
            data,
            optimizer,
            steps=30,
            eval_rows=16,
            eval_every=30,
            checkpoint_every=30,
            log_every=5,
        )
    data = DataConfig(seq_len=16_384, batch_size=128, mixture=CODE, infilling=infilling)
    return Stage(longer, data, OptimizerConfig(peak_lr=2e-5, warmup_steps=100), steps=3000)


def ablation(
    name: str,
    scale: str,
    arms: dict[str, dict[str, Stage]],
    probes: dict[str, Probe] | None = None,
) -> Experiment:
    """Returns an experiment over these arms: five seeds at toy scale, one at 7B, each arm's last model probed."""
    of_last: dict[str, Probe] = {}
    for key, probe in (probes or {}).items():
        of_last[key] = dataclasses.replace(probe, stages="last")
    if scale == "toy":
        corpus = CorpusConfig(max_files=700)
        return Experiment(
            name, scale, arms, TokenizerConfig(pieces=1024 - 16), corpus, probes=of_last, seeds=5
        )
    return Experiment(name, scale, arms, TokenizerConfig("tokenizer.model"), probes=of_last)


def _toy_stage(
    mixture: MixtureConfig, rate: float, init: str = "previous", infilling: InfillingConfig = PLAIN
) -> Stage:
    return Stage(
        model("toy"),
        DataConfig(
            seq_len=256, batch_size=4, mixture=mixture, infilling=infilling, block_chars=250
        ),
        OptimizerConfig(peak_lr=rate, warmup_steps=60),
        steps=1000,
        init=init,
        eval_rows=64,
        eval_every=100,
        checkpoint_every=500,
        log_every=20,
    )

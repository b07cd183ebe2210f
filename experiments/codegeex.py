"""CodeGeeX: a multilingual GPT with a top query layer, language tags and resets after each EOD.

Claim     Zheng et al. 2023, HumanEval-X, 13B: 22.9 / 17.1 / 20.0 / 17.6 / 14.4 % pass@1 in Python,
          C++, Java, JavaScript and Go. The training loss falls from about 0.72 nats at 10,000 steps
          to 0.38 at 213,000 (read off a figure).
Expected  toy: the validation loss falls to at most 0.7 of its start.
Cost      toy: 0.6M tokens, a few minutes on two cores. The published run took 1,536 Ascend 910 two
          months; `launch.py plan codegeex --scale 13b` prints FLOPs.
Command   python launch.py run experiments/codegeex.py --scale toy
          python launch.py run experiments/codegeex.py --scale 13b --out gs://BUCKET/codegeex
          --tokenizer.path vocab.json --tokenizer.kind codegeex --corpus.python gs://BUCKET/python
          --corpus.others.cpp gs://BUCKET/cpp --corpus.others.java gs://BUCKET/java
          (likewise javascript, c, go, html, shell, php, css and other)

The paper and the released code give the numbers: the rate falls from 1e-4 to 1e-6 on a cosine that
counts from step 0 over 200,000 of 213,000 steps, after 2,000 steps of warm-up. A document begins
with a comment that names its language; attention and positions start anew after each EOD, and no
loss is taken where EOD is the input (data/pipeline.py). Different here: sequences are packed, while
the published ones, about a third padding, hold one document each; the residual stream is bfloat16
instead of fp16; attention weights have no dropout (0.1), which the fused kernels do not support.
Chosen here: the smaller sizes take 13B's batch; 2.6B takes its rate too.
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
from codellama_jax.models.gpt.sizes import CODEGEEX, TOY
from codellama_jax.models.llama.sizes import choose
from experiments import recipe

# Shares of the corpus in percent, from a figure of the released code.
OTHERS = {
    "cpp": 28.50,
    "java": 15.98,
    "javascript": 7.13,
    "c": 6.72,
    "go": 4.71,
    "html": 3.11,
    "shell": 1.73,
    "php": 1.37,
    "css": 0.99,
    "other": 3.10,
}
MIXTURE = MixtureConfig(python=26.67, others=OTHERS)
VOCABULARY = 50_400  # of the tokenizer; the published embedding is padded to 52,224
RATE = {"base": 4e-4, "2.6b": 1e-4, "13b": 1e-4}
WARMUP = {"base": 6_000, "2.6b": 2_000, "13b": 2_000}
LAST_RATE = 1e-6


def experiment(scale: str = "13b") -> Experiment:
    """Returns the single stage of a published size."""
    if scale == "toy":
        return _toy()
    model = dataclasses.replace(
        choose(CODEGEEX | {"toy": TOY["toy_top"]}, scale),
        vocab_size=VOCABULARY,
        dropout=0.1,
        embedding_dropout=0.1,
    )
    code = Stage(
        init="scratch",
        model=model,
        data=DataConfig(seq_len=2048, batch_size=3072, mixture=MIXTURE, language_tags=True),
        optimizer=OptimizerConfig(
            peak_lr=RATE[scale],
            warmup_steps=WARMUP[scale],
            # The schedule ends at a fraction of the peak rate; the paper gives the last rate
            # itself.
            final_fraction=LAST_RATE / RATE[scale],
            eps=1e-8,
            # Shorter than the training: the last 13,000 steps keep the last rate.
            decay_steps=200_000,
            cosine_from="zero",
        ),
        steps=213_000,
    )
    # Placeholders: --corpus.others names the folders.
    corpus = CorpusConfig(others={name: f"corpus/{name}" for name in OTHERS})
    tokenizer = TokenizerConfig("vocab.json", kind="codegeex")
    return Experiment("codegeex", scale, {"main": {"code": code}}, tokenizer, corpus)


def _toy() -> Experiment:
    """Returns the stage at a size that a laptop trains, on Python alone."""
    code = recipe.toy_gpt_stage(TOY["toy_top"], recipe.CODE, language_tags=True)
    optimizer = dataclasses.replace(
        code.optimizer,
        final_fraction=0.01,
        # The same share of the steps as at the published size.
        decay_steps=code.steps * 200 // 213,
        cosine_from="zero",
    )
    stages = {"code": dataclasses.replace(code, optimizer=optimizer)}
    return recipe.toy_gpt_experiment("codegeex", {"main": stages}, "codegeex")

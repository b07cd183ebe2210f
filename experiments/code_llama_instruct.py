"""Code Llama - Instruct: fine-tuning on conversations, with a little code and natural language.

Claim     Table 2, pass@1 for 7B / 13B / 34B / 70B: 34.8 / 42.7 / 41.5 / 67.8 % on HumanEval,
          44.4 / 49.4 / 57.0 / 62.2 % on MBPP.
Expected  near Code Llama of the same size (33.5 / 36.0 / 48.8 / 53.0 % and 41.4 / 47.0 / 55.0 /
          62.4 %), and answers to zero-shot questions: Table 8.
Cost      toy, five seeds: about 8 minutes of processor time, estimated.
          `launch.py plan code_llama_instruct --scale 7b` prints that of a published size.
Command   python launch.py run experiments/code_llama_instruct.py --scale toy
          python launch.py run experiments/code_llama_instruct.py --scale 7b
          --out gs://BUCKET/instruct_7b --instruct.init run:CODE_LLAMA_RUN
          --tokenizer.path tokenizer.model --corpus.others.conversations prepared:CONVERSATIONS
          --corpus.code gs://BUCKET/code --corpus.language gs://BUCKET/text

Section 2.5 gives 5B tokens in batches of 524,288, 6 % code and 2 % natural language. The
conversations themselves, Llama 2's for alignment and 14,000 self-instruct ones, are not published:
`codellama-jax self-instruct` makes ones of the second kind. Learning rate, schedule and length are
not given either; chosen here are those of Llama 2's supervised fine-tuning: 2e-5 with a cosine, and
sequences of 4,096 tokens.

At toy scale the stage follows a model of generated programs with docstrings
(data/generated_functions.py). Both that model and the instruct model answer questions about
held-out functions in the chat format.
"""

import dataclasses
from typing import Literal

from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.llama.sizes import CODE_LLAMA, choose
from codellama_jax.report.findings import Difference, Finding, Results, pairs, spread
from experiments import generated, recipe

PAPER = {
    "base": "7B 33.5 %, completing the code",
    "instruct": "7B 34.8 %, completing the code",
}
STEPS = 9_537  # 5B tokens
# Rehearsal, so that the model forgets neither code nor language.
REHEARSAL = {"code": 0.06, "language": 0.02}


def experiment(scale: str = "7b") -> Experiment:
    """Returns the stage that follows Code Llama of a size, for 70B Code Llama - Python."""
    if scale == "toy":
        return _toy()
    stage = instruct(scale, {"conversations": 0.92})
    return Experiment(
        "code_llama_instruct",
        scale,
        {"code_llama_instruct": {"instruct": stage}},
        TokenizerConfig("tokenizer.model"),
        CorpusConfig(others={"conversations": "conversations.jsonl"}),
    )


def instruct(scale: str, shares: dict[str, float]) -> Stage:
    """Returns the stage of a published size; `shares` are those of the conversations, by source."""
    model = choose(CODE_LLAMA, scale)
    # The 70B model had no long-context stage before, and so keeps Llama 2's RoPE base.
    if scale != "70b":
        model = recipe.with_larger_base(model)
    chat: Literal["llama2", "code_llama_70b"] = "code_llama_70b" if scale == "70b" else "llama2"
    mixture = MixtureConfig(**REHEARSAL, others=shares)
    return Stage(
        # A placeholder: --instruct.init names the trained or imported model.
        init="run:code_llama",
        model=model,
        data=DataConfig(seq_len=4096, batch_size=128, mixture=mixture, chat=chat),
        optimizer=OptimizerConfig(peak_lr=2e-5, warmup_steps=100),
        steps=STEPS,
    )


def _toy() -> Experiment:
    model = generated.LLAMA
    base = generated.stage(model, {"programs": 1.0}, steps=400, init="scratch")
    trained = generated.stage(
        model, {"conversations": 0.92, "programs": 0.08}, steps=60, peak_lr=1e-3, chat="llama2"
    )
    # 0 steps evaluate the base model; the arms have equal chains.
    arms = {
        "base": {"base": base, "instruct": dataclasses.replace(trained, steps=0)},
        "instruct": {"base": base, "instruct": trained},
    }
    return generated.toy_experiment("code_llama_instruct", arms, "llama2")


def finding(results: Results) -> Finding:
    """Compares pass@1 in the chat format before and after the stage, at toy scale."""
    shares = generated.pass_at_1(results)
    rows = [(arm, spread(values, ".1%"), PAPER[arm]) for arm, values in shares.items()]
    gains = pairs(shares["instruct"], shares["base"])
    caption = "Share of held-out functions of which the greedy answer passes all tests."
    return Finding(
        question="Does the model answer questions after training on conversations?",
        source="table 2",
        headings=("model", "pass@1 in the chat format", "paper: HumanEval"),
        rows=rows,
        figures=[(caption, [generated.panel(shares)])],
        differences=[Difference("pass@1 of instruct minus base", "share", gains)],
        reason="48 conversations are too few for the toy to learn their format.",
    )

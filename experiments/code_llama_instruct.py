"""Code Llama - Instruct: fine-tuning on conversations, with a little code and natural language.

Claim     Table 2, pass@1 for 7B / 13B / 34B / 70B: 34.8 / 42.7 / 41.5 / 67.8 % on HumanEval,
          44.4 / 49.4 / 57.0 / 62.2 % on MBPP.
Expected  near Code Llama of the same size (33.5 / 36.0 / 48.8 / 53.0 % and 41.4 / 47.0 / 55.0 /
          62.4 %), and answers to zero-shot questions: Table 8.
Cost      `launch.py plan code_llama_instruct --scale 7b` prints it.
Command   python launch.py run experiments/code_llama_instruct.py --scale 7b
          --out gs://BUCKET/instruct_7b --instruct.init run:CODE_LLAMA_RUN
          --tokenizer.path tokenizer.model --corpus.others.conversations prepared:CONVERSATIONS
          --corpus.code gs://BUCKET/code --corpus.language gs://BUCKET/text

Section 2.5 gives 5B tokens in batches of 524,288, 6 % code and 2 % natural language. The
conversations themselves, Llama 2's for alignment and 14,000 self-instruct ones, are not published:
`codellama-jax self-instruct` makes ones of the second kind. Learning rate, schedule and length are
not given either; chosen here are those of Llama 2's supervised fine-tuning: 2e-5 with a cosine, and
sequences of 4,096 tokens.
"""

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
from experiments import recipe

# Rehearsal, so that the model forgets neither code nor language.
MIXTURE = MixtureConfig(code=0.06, language=0.02, others={"conversations": 0.92})
STEPS = 9_537  # 5B tokens


def experiment(scale: str = "7b") -> Experiment:
    """Returns the stage that follows Code Llama of a size, for 70B Code Llama - Python."""
    model = choose(CODE_LLAMA, scale)
    # The 70B model had no long-context stage before, and so keeps Llama 2's RoPE base.
    if scale != "70b":
        model = recipe.with_larger_base(model)
    chat: Literal["llama2", "code_llama_70b"] = "code_llama_70b" if scale == "70b" else "llama2"
    data = DataConfig(seq_len=4096, batch_size=128, mixture=MIXTURE, chat=chat)
    instruct = Stage(
        # A placeholder: --instruct.init names the trained or imported model.
        init="run:code_llama",
        model=model,
        data=data,
        optimizer=OptimizerConfig(peak_lr=2e-5, warmup_steps=100),
        steps=STEPS,
    )
    return Experiment(
        "code_llama_instruct",
        scale,
        {"code_llama_instruct": {"instruct": instruct}},
        TokenizerConfig("tokenizer.model"),
        CorpusConfig(others={"conversations": "conversations.jsonl"}),
    )

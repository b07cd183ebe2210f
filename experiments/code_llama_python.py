"""Code Llama - Python: code without infilling, then 100B tokens that are mostly Python, then longer sequences (not for 70B).

Claim     Table 2: pass@1 on HumanEval 38.4 / 43.3 / 53.7 / 57.3 % and on MBPP 47.6 / 49.0 / 56.2 / 65.6 % for 7B / 13B / 34B / 70B.
Expected  above Code Llama of the same size: 33.5 / 36.0 / 48.8 / 53.0 % and 41.4 / 47.0 / 55.0 / 62.4 %.
Cost      `launch.py plan experiments/code_llama_python.py --scale 7b` prints it.
Command   python launch.py run experiments/code_llama_python.py --scale 7b --code.init run:LLAMA2_RUN --tokenizer.path tokenizer.model
          --corpus.code gs://BUCKET/code --corpus.python gs://BUCKET/python --corpus.discussions gs://BUCKET/qa --corpus.language gs://BUCKET/text
          --out gs://BUCKET/code_llama_python_7b

Sections 2.2 to 2.4 and Table 1 give the numbers. Left open there and chosen here: rows and batch of the Python stage are the code
stage's; the long-context stage keeps the Python stage's mixture and warms up over 100 steps; 70B's code stage is Code Llama's
own, with infilling.
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
from codellama_jax.models.llama.sizes import CODE_LLAMA, choose

MIXTURE = MixtureConfig(code=0.85, discussions=0.08, language=0.07)
PYTHON_MIXTURE = MixtureConfig(code=0.10, python=0.75, discussions=0.10, language=0.05)
VOCABULARY = {"7b": 32_000, "13b": 32_000, "34b": 32_000, "70b": 32_016}
CODE_STEPS = {
    "7b": 119_209,
    "13b": 119_209,
    "34b": 119_209,
    "70b": 238_419,
}  # 500B tokens; 1T for 70B
CODE_RATE = {"7b": 3e-4, "13b": 3e-4, "34b": 1.5e-4, "70b": 1.5e-4}
INFILLING_RATE = {"7b": 0.0, "13b": 0.0, "34b": 0.0, "70b": 0.9}
LONG_STEPS = {"7b": 10_000, "13b": 10_000, "34b": 11_000}
LONG_ROWS = {"7b": 128, "13b": 128, "34b": 64}  # of 16,384: 2M tokens, 1M for 34B


def experiment(scale: str = "7b") -> Experiment:
    model = dataclasses.replace(choose(CODE_LLAMA, scale), vocab_size=VOCABULARY[scale])
    infilling = InfillingConfig(rate=INFILLING_RATE[scale])
    code = Stage(
        init="run:llama2",
        model=model,
        data=DataConfig(seq_len=4096, batch_size=1024, mixture=MIXTURE, infilling=infilling),
        optimizer=OptimizerConfig(peak_lr=CODE_RATE[scale], warmup_steps=1000),
        steps=CODE_STEPS[scale],
    )
    python = Stage(
        model=model,
        data=DataConfig(seq_len=4096, batch_size=1024, mixture=PYTHON_MIXTURE, infilling=infilling),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=1000),
        steps=23_842,  # 100B tokens
    )
    stages = {"code": code, "python": python}
    if scale in LONG_STEPS:
        stages["long_context"] = Stage(
            model=dataclasses.replace(model, rope_theta=1e6),
            data=DataConfig(seq_len=16_384, batch_size=LONG_ROWS[scale], mixture=PYTHON_MIXTURE),
            optimizer=OptimizerConfig(peak_lr=2e-5, warmup_steps=100),
            steps=LONG_STEPS[scale],
        )
    return Experiment(
        "code_llama_python",
        scale,
        {"code_llama_python": stages},
        TokenizerConfig("tokenizer.model"),
    )

"""Code Llama - Python: code training without infilling, then mostly Python, then long context.

Claim     Table 2, pass@1 for 7B / 13B / 34B / 70B: 38.4 / 43.3 / 53.7 / 57.3 % on HumanEval,
          47.6 / 49.0 / 56.2 / 65.6 % on MBPP.
Expected  above Code Llama of the same size: 33.5 / 36.0 / 48.8 / 53.0 % and
          41.4 / 47.0 / 55.0 / 62.4 %.
Cost      `launch.py plan code_llama_python --scale 7b` prints it.
Command   python launch.py run experiments/code_llama_python.py --scale 7b
          --out gs://BUCKET/python_7b --code.init run:LLAMA2_RUN --tokenizer.path tokenizer.model
          --corpus.code gs://BUCKET/code --corpus.python gs://BUCKET/python
          --corpus.discussions gs://BUCKET/qa --corpus.language gs://BUCKET/text

Sections 2.2 to 2.4 and Table 1 give the numbers. Left open there and chosen here: length and batch
of the Python stage are the code stage's; the long-context stage keeps the Python stage's mixture
and warms up over 100 steps; 70B has no long-context stage, and its code stage is Code Llama's,
with infilling.
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
from experiments import recipe

# Table 1, the Python part.
PYTHON = MixtureConfig(code=0.10, python=0.75, discussions=0.10, language=0.05)
# The published models that were trained without infilling have no entries for its sentinels.
VOCABULARY = {"7b": 32_000, "13b": 32_000, "34b": 32_000, "70b": 32_016}
INFILLING_RATE = {"7b": 0.0, "13b": 0.0, "34b": 0.0, "70b": 0.9}
LONG_STEPS = {"7b": 10_000, "13b": 10_000, "34b": 11_000}


def experiment(scale: str = "7b") -> Experiment:
    """Returns the stages of a published size: three, two for 70B."""
    model = dataclasses.replace(choose(CODE_LLAMA, scale), vocab_size=VOCABULARY[scale])
    infilling = InfillingConfig(rate=INFILLING_RATE[scale])
    longer = recipe.with_larger_base(model)
    # Section 2.2: 100B tokens at a lower learning rate, the same for all sizes.
    python = Stage(
        model=model,
        data=DataConfig(seq_len=4096, batch_size=1024, mixture=PYTHON, infilling=infilling),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=1000),
        steps=23_842,
    )
    stages = {"code": recipe.paper_code(scale, model, infilling), "python": python}
    # The published 70B has no long-context variant of its Python model.
    if scale in LONG_STEPS:
        stages["long_context"] = recipe.paper_long_context(
            scale, longer, LONG_STEPS[scale], PYTHON, infilling
        )
    return Experiment(
        "code_llama_python",
        scale,
        {"code_llama_python": stages},
        TokenizerConfig("tokenizer.model"),
    )

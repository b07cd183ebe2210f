"""Says what an experiment will train and cost, without starting JAX."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from codellama_jax import reuse
from codellama_jax.accounting import checkpoint_bytes, parameter_count, stage_flops, stage_tokens
from codellama_jax.config import Experiment, Stage, to_dict


def short(number: float, billion: str = "B") -> str:
    """Returns a number with three digits and its unit: 6.74B parameters, or with billion="G" 80.9G bytes."""
    for unit in ("", "k", "M", billion, "T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}e15"


def stage_row(stage: Stage) -> tuple[str, ...]:
    data, rate = stage.data, stage.optimizer
    mixture = ", ".join(f"{name} {share:.0%}" for name, share in to_dict(data.mixture).items() if share)
    infilling = (
        f"{data.infilling.rate:.0%}, half SPM" if data.infilling.spm == 0.5 else f"{data.infilling.rate:.0%}, {data.infilling.spm:.0%} SPM"
    )
    return (
        stage.init,
        short(parameter_count(stage.model)),
        short(stage_tokens(stage)),
        f"{stage.steps:,}",
        f"{data.batch_size:,} x {data.seq_len:,}",
        f"{rate.peak_lr:.3g} -> {rate.peak_lr * rate.final_fraction:.2g}",
        f"{stage.model.rope_theta:.0e}" + (f" / {stage.model.rope_scaling:g}" if stage.model.rope_scaling != 1 else ""),
        infilling if data.infilling.rate else "none",
        mixture,
        f"{stage_flops(stage):.3g}",
        f"{short(checkpoint_bytes(stage.model), billion='G')}B",
    )


def print_plan(experiment: Experiment, claim: str) -> None:
    """Prints a table of stages for every arm."""
    console = Console()
    console = console if console.is_terminal else Console(width=190)
    seeds = f", {experiment.seeds} seeds" if experiment.seeds > 1 else ""
    console.print(f"{experiment.name} at scale {experiment.scale}{seeds}: {claim.splitlines()[0]}", highlight=False, soft_wrap=True)
    headings = (
        "stage",
        "starts from",
        "parameters",
        "tokens",
        "steps",
        "batch",
        "learning rate",
        "RoPE base",
        "infilling",
        "mixture",
        "FLOPs",
        "checkpoint",
    )
    first: dict[str, str] = {}  # the arm that trains a stage
    for arm, stages in experiment.arms.items():
        identity = ""
        table = Table(*headings, title=arm, box=box.SIMPLE, title_justify="left")
        for index, (name, stage) in enumerate(stages.items()):
            identity = reuse.identity(stage, identity, index)
            starts_from, *cells = stage_row(stage)
            equal = f"equal to {first[identity]}'s" if identity in first else starts_from
            table.add_row(name, equal, *cells)
            first.setdefault(identity, arm)
        console.print(table)

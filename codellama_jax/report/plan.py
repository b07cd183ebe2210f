"""Prints what an experiment will train and cost, without starting JAX."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codellama_jax.checkpoints.identity import identity as identity_of
from codellama_jax.config import Experiment, Stage, to_dict
from codellama_jax.models.accounting import (
    checkpoint_bytes,
    parameter_count,
    stage_flops,
    stage_tokens,
)
from codellama_jax.models.family import family_of

FILE_WIDTH = 190  # columns where the output is a file or pipe
HEADINGS = (
    "stage",
    "starts from",
    "parameters",
    "tokens",
    "steps",
    "batch",
    "learning rate",
    "positions",
    "infilling",
    "mixture",
    "FLOPs",
    "checkpoint",
)


def short(number: float, billion: str = "B") -> str:
    """Returns a number with three digits and its unit.

    Such as 6.74B parameters, or with billion="G" 80.9G bytes.
    """
    value = float(number)
    for unit in ("", "k", "M", billion, "T"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{float(number):.3g}"


def stage_row(stage: Stage) -> tuple[str, ...]:
    """Returns the cells of a stage, in the order of HEADINGS after its name."""
    data, rate = stage.data, stage.optimizer
    shares = to_dict(data.mixture)
    mixture = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
    return (
        stage.init,
        short(parameter_count(stage.model)),
        short(stage_tokens(stage)),
        f"{stage.steps:,}",
        f"{data.batch_size:,} x {data.seq_len:,}",
        f"{rate.peak_lr:.3g} -> {rate.peak_lr * rate.final_fraction:.2g}",
        family_of(stage.model).positions(stage.model),
        _infilling(stage),
        mixture,
        f"{stage_flops(stage):.3g}",
        f"{short(checkpoint_bytes(stage.model), billion='G')}B",
    )


def _infilling(stage: Stage) -> str:
    infilling = stage.data.infilling
    if not infilling.rate:
        return "none"
    spm = "half" if infilling.spm == 0.5 else f"{infilling.spm:.0%}"
    return f"{infilling.rate:.0%}, {spm} SPM"


def print_plan(experiment: Experiment, claim: str) -> None:
    """Prints a table of stages for every arm."""
    console = Console()
    console = console if console.is_terminal else Console(width=FILE_WIDTH)
    seeds = f", {experiment.seeds} seeds" if experiment.seeds > 1 else ""
    title = f"{experiment.name} at scale {experiment.scale}{seeds}: {claim.splitlines()[0]}"
    console.print(escape(title), highlight=False, soft_wrap=True)
    first: dict[str, str] = {}  # the arm that trains a stage
    for arm, stages in experiment.arms.items():
        identity = ""
        rows: list[tuple[str, ...]] = []
        for index, (name, stage) in enumerate(stages.items()):
            identity = identity_of(stage, identity, index)
            starts_from, *cells = stage_row(stage)
            equal = f"equal to {first[identity]}'s" if identity in first else starts_from
            rows.append((name, equal, *cells))
            first.setdefault(identity, arm)
        print_rows(console, arm, rows)


def print_rows(console: Console, arm: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints the stages of an arm as rows, or as columns where rows are wider than the console.

    As many columns stand side by side as fit. A column that does not fit alone is folded: no cell
    is ever truncated.
    """
    table = _table(arm, HEADINGS, rows)
    if _width(console, table) <= console.width:
        console.print(table)
        return
    start = 0
    while start < len(rows):
        count = len(rows) - start
        turned = _turned(arm, rows[start : start + count])
        while count > 1 and _width(console, turned) > console.width:
            count -= 1
            turned = _turned(arm, rows[start : start + count])
        console.print(turned)
        start += count


def _turned(arm: str, rows: Sequence[tuple[str, ...]]) -> Table:
    names, *lines = zip(HEADINGS, *rows)
    mixture = HEADINGS.index("mixture") - 1
    lines[mixture] = tuple(cell.replace(", ", ",\n") for cell in lines[mixture])  # narrower
    return _table(arm, names, lines)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title), box=box.SIMPLE, title_justify="left")
    for heading in headings:
        table.add_column(escape(heading), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _width(console: Console, table: Table) -> int:
    """Returns the columns that a table takes without wrapping a cell."""
    unlimited = console.options.update(max_width=100_000)
    return console.measure(table, options=unlimited).maximum

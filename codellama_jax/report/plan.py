"""Prints the stages of an experiment and their cost, without starting JAX."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints.identity import identity as identity_of
from codellama_jax.config import Experiment, Stage, TokenizerConfig
from codellama_jax.data.prepared import CHARACTERS_PER_TOKEN, Manifest, manifests_of
from codellama_jax.models.accounting import (
    TRAINED_BYTES,
    checkpoint_bytes,
    frozen_bytes,
    parameter_count,
    stage_flops,
    stage_tokens,
    trained_parameters,
)
from codellama_jax.models.family import family_of
from codellama_jax.system.console import plain_console
from codellama_jax.system.files import user_path

FILE_WIDTH = 190  # characters per line if the output is a file or pipe
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
SOURCE_HEADINGS = ("stage", "source", "share", "tokens trained", "tokens of the source", "epochs")
DATA_HEADINGS = ("data", "kind", "models", "amounts", "read by")
ESTIMATED = "about "  # before the tokens of a source that were not counted


def short(number: float, billion: str = "B") -> str:
    """Returns a number with three digits and a unit, such as 6.74B.

    Bytes and FLOPs are written with `billion="G"`, such as 80.9G.
    """
    value = float(number)
    for unit in ("", "k", "M", billion, "T"):
        if value < 999.5:  # 999.5 and above would be rounded to 1000
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{float(number):.3g}"


def stage_row(stage: Stage) -> tuple[str, ...]:
    """Returns the cells of a stage, in the order of HEADINGS, without its name."""
    data, rate = stage.data, stage.optimizer
    shares = data.mixture.shares()
    total = sum(shares.values())
    mixture = ", ".join(f"{name} {share / total:.0%}" for name, share in shares.items() if share)
    return (
        stage.init,
        _parameters(stage),
        short(stage_tokens(stage)),
        f"{stage.steps:,}",
        f"{data.batch_size:,} x {data.seq_len:,}",
        f"{rate.peak_lr:.3g} -> {rate.peak_lr * rate.final_fraction:.2g}",
        family_of(stage.model).positions(stage.model),
        _infilling(stage),
        mixture,
        f"{stage_flops(stage):.3g}",
        f"{short(checkpoint_bytes(stage), billion='G')}B",
    )


def _parameters(stage: Stage) -> str:
    """Returns the number of parameters, and with adapters also what trains and what is frozen."""
    total, lora = short(parameter_count(stage.model)), stage.lora
    if lora.rank is None:
        return total
    trained = trained_parameters(stage)
    frozen = f"{short(frozen_bytes(stage), billion='G')}B frozen"
    if lora.quantize_base != "none":
        frozen += f" in {lora.quantize_base}"
    state = f"{short(TRAINED_BYTES * trained, billion='G')}B with optimizer and gradient"
    targets = " ".join(lora.targets)
    return f"{total}, {frozen}; LoRA {lora.rank} of {targets}: {short(trained)}, {state}"


def _infilling(stage: Stage) -> str:
    """Returns the infilling rate and its share of SPM, such as "90%, half SPM".

    That of StarCoder's form is "50%, half SPM, packed".
    """
    infilling = stage.data.infilling
    if not infilling.rate:
        return "none"
    spm = "half" if infilling.spm == 0.5 else f"{infilling.spm:.0%}"
    form = ", packed" if infilling.form == "starcoder" else ""
    return f"{infilling.rate:.0%}, {spm} SPM{form}"


def print_plan(experiment: Experiment, claim: str) -> None:
    """Prints a table of stages for every arm, and one of its sources if a corpus is prepared.

    The title has the first line of `claim`. Raises UserError for a corpus that cannot be read.
    """
    # A mistake is found before anything is printed.
    sources = {arm: source_rows(experiment, stages) for arm, stages in experiment.arms.items()}
    cells_of = {arm: _stage_rows(stages) for arm, stages in experiment.arms.items()}
    console = plain_console()
    # A pipe has no width, and rich would assume 80 columns, in which the table is folded.
    if not console.is_terminal:
        console = plain_console(width=FILE_WIDTH)
    seeds = f", {experiment.seeds} seeds" if experiment.seeds > 1 else ""
    title = f"{experiment.name} at scale {experiment.scale}{seeds}: {claim.splitlines()[0]}"
    console.print(title, soft_wrap=True)
    # Stages of equal identity are trained once: the first arm that has one, by identity.
    first_arm: dict[str, str] = {}
    for arm, stages in experiment.arms.items():
        identity = ""
        rows: list[tuple[str, ...]] = []
        for index, (name, stage) in enumerate(stages.items()):
            # A plan reads no documents, so that this identity covers the configs alone. The index
            # takes the place of the seed, which counts up from stage to stage in every arm alike.
            identity = identity_of(stage, identity, index)
            starts_from, *cells = cells_of[arm][name]
            if identity in first_arm:
                starts_from = f"equal to {first_arm[identity]}'s"
            rows.append((name, starts_from, *cells))
            first_arm.setdefault(identity, arm)
        print_rows(console, arm, rows)
        if data := data_rows(experiment, stages):
            console.print(_table(f"{arm}: data that models write", DATA_HEADINGS, data))
        _print_sources(console, arm, sources[arm])


def _stage_rows(stages: dict[str, Stage]) -> dict[str, tuple[str, ...]]:
    """Returns the cells of each stage. Raises FieldError for adapters that a model cannot have."""
    rows = {}
    for name, stage in stages.items():
        try:
            rows[name] = stage_row(stage)
        except FieldError as error:
            raise error.under(name) from None
    return rows


def data_rows(experiment: Experiment, stages: dict[str, Stage]) -> list[tuple[str, ...]]:
    """Returns the cells of each data stage that an arm reads, in the order of DATA_HEADINGS."""
    readers: dict[str, list[str]] = {}
    for name, stage in stages.items():
        for source in experiment.data_read_by(stage):
            readers.setdefault(source, []).append(name)
    rows: list[tuple[str, ...]] = []
    for source, names in readers.items():
        data = experiment.data_stages[source]
        models = ", ".join(dict.fromkeys(data.models()))
        rows.append((source, data.kind, models, data.amounts(), ", ".join(names)))
    return rows


def source_rows(experiment: Experiment, stages: dict[str, Stage]) -> list[tuple[str, ...]]:
    """Returns the cells of each stage and source, in the order of SOURCE_HEADINGS.

    Stages without a prepared corpus are left out: the size of other corpora is not known before a
    run reads them. Raises UserError for a prepared corpus that cannot be read.
    """
    rows: list[tuple[str, ...]] = []
    for name, stage in stages.items():
        manifests = manifests_of(experiment.corpus, name, stage)
        fingerprint = _fingerprint(experiment.tokenizer, manifests)
        shares = stage.data.mixture.shares()
        for source, weight in shares.items():
            if not manifests or not weight:
                continue
            share = weight / sum(shares.values())
            trained = share * stage_tokens(stage)
            cells = ("not prepared", "")
            if source in manifests:
                tokens, is_counted = manifests[source].training_tokens(fingerprint)
                text = ("" if is_counted else ESTIMATED) + short(tokens)
                cells = (text, f"{trained / max(tokens, 1):.3g}")
            rows.append((name, source, f"{share:.3g}", short(trained), *cells))
    return rows


def _fingerprint(config: TokenizerConfig, manifests: dict[str, Manifest]) -> str:
    """Returns the fingerprint of the tokenizer, "" if its file is missing or has no counts."""
    counted = any(manifest.tokens for manifest in manifests.values())
    # Its import takes longer than all other work of a plan.
    if not config.path or not counted or not user_path(config.path).exists():
        return ""
    from codellama_jax.tokenizers import files

    return files.load(config.path, config.kind).fingerprint


def _print_sources(console: Console, arm: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints the sources of an arm's stages, and how their tokens are known."""
    if not rows:
        return
    console.print(_table(f"{arm}: sources", SOURCE_HEADINGS, rows))
    notes = ["tokens trained include padding"]
    if any(ESTIMATED in cell for row in rows for cell in row):
        estimate = f"tokens estimated from characters ({CHARACTERS_PER_TOKEN} per token)"
        notes.append(
            f"{ESTIMATED.strip()}: {estimate}, as they were not counted with the tokenizer"
        )
    console.print("; ".join(notes), soft_wrap=True)


def print_rows(console: Console, arm: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints the stages of an arm as rows, or as columns if rows are wider than the console.

    A table has as many columns as fit. A column that alone is too wide is folded: no cell is ever
    truncated.
    """
    table = _table(arm, HEADINGS, rows)
    if _width(console, table) <= console.width:
        console.print(table)
        return
    # The widest group of stages that fits, then the next: a table takes as many stages as possible.
    start = 0
    while start < len(rows):
        # All remaining stages first, then one fewer until the table fits; a single one is printed
        # anyhow.
        count = len(rows) - start
        transposed = _transposed(arm, rows[start : start + count])
        while count > 1 and _width(console, transposed) > console.width:
            count -= 1
            transposed = _transposed(arm, rows[start : start + count])
        console.print(transposed)
        start += count


def _transposed(arm: str, rows: Sequence[tuple[str, ...]]) -> Table:
    """Returns the table with a column for each stage."""
    # zip of rows gives columns: each line is one heading with its cells of all stages.
    names, *lines = zip(HEADINGS, *rows)
    mixture = HEADINGS.index("mixture") - 1  # the names of the stages are now the headings
    # One source per line makes the longest cell narrower.
    lines[mixture] = tuple(cell.replace(", ", ",\n") for cell in lines[mixture])
    return _table(arm, names, lines)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _width(console: Console, table: Table) -> int:
    """Returns the width in characters that a table takes without wrapping a cell."""
    # Measured without a limit, since a limited measure would report the limit itself.
    unlimited = console.options.update(max_width=100_000)
    return console.measure(table, options=unlimited).maximum

"""The stages of a run, each resolved once: its seed, folder, mesh and first parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints.base import Base
from codellama_jax.checkpoints.folder import RunFolder, StageFolder, seeded
from codellama_jax.checkpoints.loading import check_shapes, load_params
from codellama_jax.config import Experiment, Stage
from codellama_jax.data_stage import DataStage
from codellama_jax.errors import UserError
from codellama_jax.training.loop import check_stage
from codellama_jax.training.step import check_memory
from codellama_jax.weights import load

SEEDS_APART = 1_000_003  # far more than an arm has stages, each of which takes the next number


@dataclass(frozen=True, eq=False)
class ResolvedData:
    """A data stage of one seed of an arm, ready to run once the arm's stages before it have."""

    name: str
    seed: int
    stage: DataStage
    folder: StageFolder
    stages: dict[str, ResolvedStage]  # those before it, whose models may write, by name

    def __str__(self) -> str:
        return f"{self.folder.path.parent.name}/{self.name}"


@dataclass(frozen=True, eq=False)
class ResolvedStage:
    """A stage of one seed of an arm, ready to check, train and probe."""

    arm: str
    name: str
    number: int  # of the arm's seed
    index: int  # in the arm
    seed: int
    stage: Stage
    folder: StageFolder
    mesh: Mesh
    before: ResolvedStage | None
    data: tuple[ResolvedData, ...] = ()  # that it reads, written before it

    def __str__(self) -> str:
        return f"{seeded(self.arm, self.number)}/{self.name}"

    @property
    def chain(self) -> list[ResolvedStage]:
        """The stages of the arm up to this one."""
        return [*(self.before.chain if self.before else []), self]

    @functools.cached_property
    def initial(self) -> Callable[[], Any] | None:
        """The function that loads the first parameters, or None to draw them from the PRNG.

        For a stage with adapters it returns the `Base` that they are added to. Their files are
        opened once. Raises UserError if the files do not exist or hold another model.
        """
        # Cached and lazy: a finished stage never looks for the files of its first parameters.
        stage, before = self.stage, self.before
        if stage.init == "scratch":
            return None
        has_adapters = stage.lora.rank is not None
        if has_adapters and stage.init != "previous":
            base = load.run_base(stage)
            return lambda: base
        if stage.init != "previous":
            return load.initial_params(stage, self.mesh)
        if before is None:
            raise UserError(
                "the first stage of an arm has none before it:"
                " its init is scratch, run:DIR, hf:DIR, meta:DIR, codegeex:DIR or gguf:FILE"
            )
        check_shapes(before.folder, before.stage.model, stage.model)
        # The folder is resolved when the parameters are needed: `before` is trained by then.
        if has_adapters:
            return lambda: Base(before.folder.trained(), None)
        return lambda: load_params(before.folder.trained(), stage.model, self.mesh)

    def check(self) -> None:
        """Raises UserError for a stage that cannot run on this mesh or after the one before it."""
        try:
            # The cheapest check first: the last one traces the state.
            check_stage(self.stage, self.mesh)
            _ = self.initial
            check_memory(self.stage, self.mesh)
        except FieldError as error:
            raise error.under(self.name) from None


def resolve(
    experiment: Experiment, arms: dict[str, dict[str, Stage]], folder: RunFolder, mesh: Mesh
) -> list[ResolvedStage]:
    """Returns the stages of each seed of the arms, in the order in which they run."""
    resolved = []
    # Seed by seed: after the first pass every arm has a result to look at.
    for number in range(experiment.seeds):
        for arm, chain in arms.items():
            stages: dict[str, ResolvedStage] = {}
            data: dict[str, ResolvedData] = {}  # each once, whichever stages read it
            before: ResolvedStage | None = None
            for index, (name, stage) in enumerate(chain.items()):
                # A separate seed for each stage: with equal seeds a second stage on the same
                # documents would read them in the order of the first.
                seed = experiment.seed + number * SEEDS_APART + index
                # Data that are written between stages: their models are those of the stages before
                # this one.
                for source in experiment.data_read_by(stage):
                    if source not in data:
                        place = folder.stage(seeded(arm, number), source)
                        config = experiment.data_stages[source]
                        data[source] = ResolvedData(source, seed, config, place, dict(stages))
                read = tuple(data[source] for source in experiment.data_read_by(stage))
                place = folder.stage(seeded(arm, number), name)
                before = stages[name] = ResolvedStage(
                    arm, name, number, index, seed, stage, place, mesh, before, read
                )
                resolved.append(before)
    return resolved

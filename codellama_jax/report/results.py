"""The results of a run's stages, for reports and findings. Imports no JAX."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from codellama_jax.config import Stage
from codellama_jax.errors import UserError


def answer_name(probe: str, step: int) -> str:
    """Returns the name in probes.json of a probe's answer at a step before the last one."""
    return f"{probe}@{step}"


@dataclass(frozen=True)
class StageResult:
    """The contents of a stage's folder, empty if nothing has been written yet."""

    name: str  # STAGE, or ARM/STAGE if there are several arms
    stage: Stage
    training: list[dict[str, float]]  # logged numbers, one entry per logged step
    validation: list[dict[str, float]]  # one entry per validation, with the `tokens` seen by then
    probes: dict[str, Any]  # answers by the name of the probe
    trained_at: str = ""  # the folder in which this stage, or an equal one, was trained
    damage: tuple[str, ...] = ()  # one line for each file that could not be read

    @property
    def done(self) -> bool:
        """Returns whether the last step has been validated."""
        # A stage of 0 steps has one validation, at step 0, and is done with it.
        return bool(self.validation) and self.validation[-1]["step"] == self.stage.steps

    @property
    def is_ranked(self) -> bool:
        """Returns whether the stage trains on pairs: its losses, and its tokens, are of pairs."""
        return self.stage.objective != "next_token"

    @property
    def unit(self) -> str:
        """Returns the unit of the stage's losses."""
        return "nats per pair" if self.is_ranked else "nats per token"

    @property
    def loss(self) -> float:
        """Returns the loss of the last validation, in `unit`."""
        return self.validation[-1]["validation_loss"]

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Returns (tokens seen, validation loss) of every validation."""
        return [(line["tokens"], line["validation_loss"]) for line in self.validation]

    def tokens_at(self, step: int) -> float:
        """Returns the tokens seen after a step, interpolated between validations."""
        steps = [line["step"] for line in self.validation]
        # The x axis of a report is tokens, which differ between runs of equal steps by their
        # padding.
        return float(np.interp(step, steps, [line["tokens"] for line in self.validation]))

    def loss_at(self, step: int) -> float:
        """Returns the validation loss after a step, interpolated between validations."""
        steps = [line["step"] for line in self.validation]
        losses = [line["validation_loss"] for line in self.validation]
        return float(np.interp(step, steps, losses))

    def probe(self, name: str, step: int | None = None) -> Any:
        """Returns the answer of a probe after the last step, or after an earlier one.

        Raises UserError with the reason if there is none.
        """
        # The answer after the last step has the plain name of the probe, without a step.
        if step is not None and step != self.stage.steps:
            name = answer_name(name, step)
        answer = self.probes.get(name, {"note": f"{name} was not measured"})
        if "note" in answer:
            raise UserError(f"{self.name}: {answer['note']}")
        return answer

    @property
    def measured(self) -> bool:
        """Returns whether anything was logged."""
        return bool(self.training or self.validation)

    @property
    def seconds(self) -> float:
        """Returns the time of training and validation over all starts, 0 if nothing was logged."""
        # The field counts on after a resume, so that the largest one is the sum over all starts.
        return max((line["seconds"] for line in (*self.training, *self.validation)), default=0.0)


def unit_of(results: Iterable[StageResult]) -> str:
    """Returns the unit of the losses of stages, or both units."""
    units = sorted({result.unit for result in results})
    return units[0] if len(units) == 1 else "nats per token, or per pair"


Results = dict[str, list[list[StageResult]]]  # by arm: for each seed its stages in order


def complete(results: Results) -> Results:
    """Returns the results of the seeds in which every stage of every arm is done."""
    # Arms are compared seed by seed, so a seed that one arm lacks is left out of all arms.
    finished: Results = {arm: [] for arm in results}
    # The k-th entry of every arm is the same seed, so that zip yields the chains of one seed.
    for chains in zip(*results.values()):
        stages = itertools.chain(*chains)
        if all(stage.done for stage in stages):
            for arm, chain in zip(results, chains):
                finished[arm].append(chain)
    return finished

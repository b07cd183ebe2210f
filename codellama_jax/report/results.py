"""The measurements of a run's stages, as the report and the findings read them. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codellama_jax.config import Stage
from codellama_jax.errors import UserError


@dataclass(frozen=True)
class StageResult:
    """The contents of a stage's folder; empty where nothing has been written yet."""

    name: str  # of the stage, after that of its arm where there are several arms
    stage: Stage
    training: list[dict[str, float]]  # by step
    validation: list[dict[str, float]]  # by step, with `tokens` seen by then
    probes: dict[str, Any]
    trained_at: str = ""  # the folder in which it, or a stage equal to it, was trained
    damage: tuple[str, ...] = ()  # one line for each file that could not be read

    @property
    def done(self) -> bool:
        """Whether the last step has been validated."""
        return bool(self.validation) and self.validation[-1]["step"] == self.stage.steps

    @property
    def loss(self) -> float:
        """Loss of the last validation in nats per token."""
        return self.validation[-1]["validation_loss"]

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(tokens seen, validation loss) of every validation."""
        return [(line["tokens"], line["validation_loss"]) for line in self.validation]

    def probe(self, name: str) -> Any:
        """Returns the result of a probe. Raises UserError with the reason if there is none."""
        answer = self.probes.get(name, {"note": f"{name} was not measured"})
        if "note" in answer:
            raise UserError(f"{self.name}: {answer['note']}")
        return answer

    @property
    def measured(self) -> bool:
        """Whether anything was logged."""
        return bool(self.training or self.validation)

    @property
    def seconds(self) -> float:
        """Time of training and validation over all starts, 0 if nothing was logged."""
        return max((line["seconds"] for line in (*self.training, *self.validation)), default=0.0)


Results = dict[str, list[list[StageResult]]]  # arm -> seeds -> stages, in order


def complete(results: Results) -> Results:
    """Returns the seeds in which every stage of every arm is done."""
    finished = []
    for chains in zip(*results.values()):
        if all(stage.done for chain in chains for stage in chain):
            finished.append(chains)
    return {arm: [chains[i] for chains in finished] for i, arm in enumerate(results)}

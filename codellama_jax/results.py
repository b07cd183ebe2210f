"""What a run's stages measured, as the report and the findings read it. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codellama_jax.config import Stage
from codellama_jax.errors import UserError


@dataclass(frozen=True)
class StageResult:
    """What the folder of a stage holds; empty where there is nothing yet."""

    name: str  # the stage's, after its arm's where there are several
    stage: Stage
    training: list[dict[str, float]]  # by step
    validation: list[dict[str, float]]  # by step, with `tokens` seen by then
    probes: dict[str, Any]
    trained_at: str = ""  # the folder of the stage that it is, where an equal one was trained

    @property
    def done(self) -> bool:
        return bool(self.validation) and self.validation[-1]["step"] == self.stage.steps

    @property
    def loss(self) -> float:
        """Of the last validation, nats a token."""
        return self.validation[-1]["validation_loss"]

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(tokens seen, validation loss) of every validation."""
        return [(line["tokens"], line["validation_loss"]) for line in self.validation]

    def probe(self, name: str) -> Any:
        """Returns what a probe answered. Raises UserError with the reason if it could not be asked."""
        answer = self.probes.get(name, {"note": f"{name} was not asked"})
        if "note" in answer:
            raise UserError(f"{self.name}: {answer['note']}")
        return answer

    @property
    def measured(self) -> bool:
        return bool(self.training or self.validation)


Results = dict[str, list[list[StageResult]]]  # arm -> seeds -> stages, in order


def complete(results: Results) -> Results:
    """Returns the seeds of which every stage of every arm is done."""
    seeds = zip(*results.values())
    whole = [chains for chains in seeds if all(stage.done for chain in chains for stage in chain)]
    return {arm: [chains[i] for chains in whole] for i, arm in enumerate(results)}

"""Stages resume at the parts that are not complete, and skip the others."""

from dataclasses import dataclass

import pytest

from codellama_jax.data.prepare.runners import Runner
from codellama_jax.data.prepare.stages import StageFolder, fingerprint, run_stage
from codellama_jax.errors import UserError


@dataclass(frozen=True)
class Work:
    """Appends to a log, fails at one part, and marks the others as complete."""

    stage: StageFolder
    log: str
    fails_at: int = -1

    def __call__(self, number):
        with open(self.log, "a") as log:
            log.write(f"{number}\n")
        if number == self.fails_at:
            raise UserError("part 2 is damaged: repair it")
        self.stage.finish(number, {"documents": number})


def numbers(count):
    return {number: number for number in range(count)}


def test_a_stage_continues_with_the_parts_that_are_not_complete(tmp_path):
    from etils import epath

    stage, log = StageFolder(epath.Path(tmp_path), "documents", "a1"), str(tmp_path / "log")
    with pytest.raises(UserError, match=r"^part 2 is damaged: repair it$"):
        run_stage(Runner(), stage, numbers(4), Work(stage, log, fails_at=2), print)
    done = {number for number in range(4) if stage.counts([number])[0]}
    lines = []
    counts = run_stage(Runner(), stage, numbers(4), Work(stage, log), lines.append)
    assert counts == [{"documents": number} for number in range(4)]
    started = (tmp_path / "log").read_text().split()
    # No part that was complete is done again.
    assert all(started.count(str(number)) == 1 for number in done)
    assert not done or lines == [f"documents: {len(done)} of 4 parts are done already"]
    run_stage(Runner(), stage, numbers(4), Work(stage, log), print)
    assert (tmp_path / "log").read_text().split() == started


def test_a_fingerprint_depends_on_values_and_not_on_their_order_in_a_dict():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(1), fingerprint("1"), fingerprint([1]), fingerprint(1, 2)}) == 4

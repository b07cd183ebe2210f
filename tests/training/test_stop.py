import contextlib
import math
from types import SimpleNamespace

import pytest
import toy

from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import Stopped
from codellama_jax.training import loop


def finished_stage(monkeypatch, others: dict[str, int]) -> tuple[SimpleNamespace, list[tuple]]:
    """Returns a stage with no step left, and what it is marked done with.

    `others` holds the signals that other hosts received, by their index.
    """
    done: list[tuple] = []

    def nothing(*_):
        pass

    parts = {
        "name": "main/code",
        "stage": SimpleNamespace(steps=3),
        "tokens": 7,
        "start": lambda *_: 3,
        "folder": SimpleNamespace(mark_done=lambda *numbers: done.append(numbers)),
        "checkpoints": SimpleNamespace(last_good=str, wait=nothing, close=nothing),
        "batches": SimpleNamespace(close=nothing),
    }
    monkeypatch.setattr(loop, "Metrics", lambda *_: SimpleNamespace(close=nothing))
    monkeypatch.setattr(loop, "gather", lambda values: values | others)
    return SimpleNamespace(**parts), done


def test_a_signal_of_another_host_after_the_last_step_stops_this_host_too(monkeypatch):
    run, done = finished_stage(monkeypatch, {"1": 15, "2": 0})
    with pytest.raises(Stopped) as stopped:
        loop.train_stage(run, None, 0)
    assert stopped.value.args == (15,)
    assert done == [(3, 7)]


def test_a_finished_stage_without_a_signal_ends(monkeypatch):
    run, done = finished_stage(monkeypatch, {"1": 0})
    loop.train_stage(run, None, 0)
    assert done == [(3, 7)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_stage(loss):
    run = SimpleNamespace(
        name="main/code",
        stage=toy.stage(),
        state=SimpleNamespace(params={}),
        has_adapters=False,
        settle=lambda in_flight: None,
        validation=[{}, {}],
        eval_step=lambda params, batch: (loss, 4.0),
        throughput=SimpleNamespace(pause=contextlib.nullcontext),
        checkpoints=SimpleNamespace(last_good=lambda: "step 2"),
    )
    with pytest.raises(UserError, match=f"main/code: validation loss {loss} at step 3: .*step 2"):
        loop.StageRun.evaluate(run, 3)

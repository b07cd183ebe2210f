"""The lines of metrics.jsonl that a stage keeps when it continues, and its rates."""

import json

import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.training import metrics
from codellama_jax.training.metrics import Metrics, Throughput, read_metrics


@pytest.mark.parametrize(
    ("start", "kept"),
    [
        pytest.param(0, [], id="killed before the first checkpoint"),
        pytest.param(2, [0, 1, 2], id="killed after a checkpoint"),
    ],
)
def test_steps_that_are_computed_again_have_one_line(tmp_path, start, kept):
    folder = StageFolder(epath.Path(tmp_path))
    lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 0.5}) for step in range(4)]
    folder.metrics.write_text("\n".join([*lines, ""]))
    Metrics(folder, "main/code", toy.stage(), start).close()
    assert [line["step"] for line in read_metrics(folder.metrics)] == kept


def test_every_interval_has_a_rate_without_the_time_of_its_pauses(monkeypatch):
    """Also where each step that is logged is followed by an evaluation."""
    seconds = 0.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: seconds)
    stage = toy.stage()
    throughput = Throughput(stage)
    assert throughput.rates(1) == {}  # includes compiling
    for step in (11, 21):
        with throughput.pause():
            seconds += 100
        seconds += 5
        tokens = 10 * stage.data.batch_size * stage.data.seq_len
        assert throughput.rates(step)["tokens_per_second"] == pytest.approx(tokens / 5)

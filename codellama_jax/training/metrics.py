"""A stage's numbers: lines of metrics.jsonl, TensorBoard, and the terminal with the time left."""

from __future__ import annotations

import json
import time

import jax
from etils import epath
from rich.console import Console
from rich.progress import Progress

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.config import Stage
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import flops_per_token
from codellama_jax.system.console import warn
from codellama_jax.system.files import is_bucket, read_file, write_file
from kernels.static.chips import PEAK_FLOPS

SHOWN = {
    "loss": "loss {:.4f}",
    "validation_loss": "validation loss {:.4f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu_causal": "MFU {:.1%}",
}


def read_metrics(path: epath.Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl.

    Leaves out a last line that a kill interrupted, and, with a warning, damaged lines.
    """
    if not path.exists():
        return []
    metrics, damaged = [], []
    for number, line in enumerate(read_file(path).split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict) and {"step", "seconds"} <= set(values):
            metrics.append(values)
        elif line:
            damaged.append(number)
    if damaged:
        warn(f"warning: {path}: left out {len(damaged)} damaged lines, the first is {damaged[0]}")
    return metrics


def duration(seconds: float) -> str:
    """Returns a time as `2 h 05 min`, `3 min 20 s` or `45 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class Throughput:
    """Rates over the time since the last call.

    FLOPs count every position of a sequence, in both conventions for attention.
    """

    def __init__(self, stage: Stage):
        self.stage, self.time, self.step = stage, time.perf_counter(), None
        self.peak = PEAK_FLOPS.get(jax.devices()[0].device_kind, 0) * jax.device_count()

    def rates(self, step: int) -> dict[str, float]:
        """Returns tokens/s, FLOP/s (causal) and, where the device's peak is known, both MFUs.

        Returns nothing after a pause or a compilation.
        """
        now, before, first = time.perf_counter(), self.time, self.step
        self.time, self.step = now, step
        if first is None:
            return {}
        data = self.stage.data
        tokens_per_second = (step - first) * data.batch_size * data.seq_len / (now - before)
        causal = tokens_per_second * flops_per_token(self.stage.model, data.seq_len, True)
        full = tokens_per_second * flops_per_token(self.stage.model, data.seq_len, False)
        rates = {"tokens_per_second": tokens_per_second, "flops_per_second": causal}
        if self.peak:
            rates |= {"mfu_causal": causal / self.peak, "mfu": full / self.peak}
        return rates

    def pause(self) -> None:
        """Leaves out what happens until the next step: an evaluation, a checkpoint."""
        self.step = None


class Metrics:
    """Writes a stage's numbers, on the first host only.

    Lines past the step `start`, from which the run resumes, are dropped.
    """

    def __init__(self, folder: StageFolder, name: str, stage: Stage, start: int):
        self.path, self.name, self.stage = folder.metrics, name, stage
        self.first_host = jax.process_index() == 0
        if not self.first_host:
            return
        from tensorboardX import SummaryWriter

        kept = [line for line in read_metrics(self.path) if line["step"] <= start]
        self.lines = [json.dumps(line) for line in kept]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        self.began = time.perf_counter()
        self.first: tuple[int, float] | None = None  # step and time of the first number of training
        self._rewrite()
        self.board = SummaryWriter(str(folder.tensorboard), purge_step=start if start else None)
        self.console = Console()
        self.progress = Progress(console=self.console, disable=not self.console.is_terminal)
        self.bar = self.progress.add_task(name, total=stage.steps, completed=start)
        self.progress.start()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Records numbers for `step`: how many updates the model has had."""
        if not self.first_host:
            return
        seconds = self.seconds_before + time.perf_counter() - self.began
        line = json.dumps({"step": step, **numbers, "seconds": round(seconds, 3)})
        self.lines.append(line)
        if not is_bucket(self.path):  # which cannot append: there flush() writes the file
            try:
                with self.path.open("a") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        for key, value in numbers.items():
            self.board.add_scalar(key, value, step)
        self._show(step, numbers)

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        words = [form.format(numbers[key]) for key, form in SHOWN.items() if key in numbers]
        text = "  ".join([f"{self.name} step {step}/{self.stage.steps}", *words])
        self.progress.update(self.bar, completed=step, description=text)
        if not self.console.is_terminal or "validation_loss" in numbers:
            text = "  ".join([text, *self._time_left(step, numbers)])
            self.console.print(text, highlight=False, soft_wrap=True)

    def _time_left(self, step: int, numbers: dict[str, float]) -> list[str]:
        """Returns how long the stage will still take, from the second number of training on."""
        now = time.perf_counter()
        if self.first is None:
            self.first = (step, now) if "loss" in numbers else None
            return []
        steps, seconds = step - self.first[0], now - self.first[1]
        if steps <= 0 or step >= self.stage.steps:
            return []
        return [f"{duration(seconds / steps * (self.stage.steps - step))} left"]

    def flush(self) -> None:
        if self.first_host:
            self.board.flush()
            if is_bucket(self.path):
                self._rewrite()

    def _rewrite(self) -> None:
        write_file(self.path, "".join(f"{line}\n" for line in self.lines))

    def close(self) -> None:
        if self.first_host:
            self.flush()
            self.progress.stop()
            self.board.close()

"""The metrics of a stage, written to metrics.jsonl, to TensorBoard and to the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath
from rich.progress import Progress, TextColumn

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.config import Stage
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import training_flops
from codellama_jax.system.console import plain_console, warn
from codellama_jax.system.files import is_bucket, read_file, write_file
from kernels.static.chips import PEAK_FLOPS

# Metrics that the terminal shows, and how.
SHOWN = {
    "loss": "loss {:.4f}",
    "rank_loss": "rank {:.4f}",
    "tuning_loss": "fine-tuning {:.4f}",
    "validation_loss": "validation loss {:.4f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu_causal": "MFU {:.1%}",
}


def read_metrics(path: epath.Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl, [] if there is no such file.

    Damaged lines are left out with a warning, and without one a last line that has no line break:
    a run that was killed while writing leaves such a line.
    """
    if not path.exists():
        return []
    metrics: list[dict] = []
    damaged: list[int] = []
    # After the last line break there is either nothing or an interrupted line.
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
    """Rates of training over the time since the last call, without the pauses in it.

    FLOPs count every position of a sequence, including padding.
    """

    def __init__(self, stage: Stage):
        self.stage, self.time = stage, time.perf_counter()
        self.step: int | None = None  # step of the last call; None before the first one
        # 0 for a device that the table does not list: no MFU is reported then.
        self.peak = PEAK_FLOPS.get(jax.devices()[0].device_kind, 0) * jax.device_count()

    def rates(self, step: int) -> dict[str, float]:
        """Returns the rates since the last call, {} in the first call.

        They are `tokens_per_second`, `flops_per_second` with causal attention, and, if the peak of
        the device is known, `mfu_causal` and `mfu` with the full square of attention.
        """
        now, before, last_step = time.perf_counter(), self.time, self.step
        self.time, self.step = now, step
        # The time before the first call includes compiling.
        if last_step is None:
            return {}
        data = self.stage.data
        tokens_per_second = (step - last_step) * data.batch_size * data.seq_len / (now - before)
        # Attention's FLOPs are counted in both usual ways, because papers differ.
        causal = tokens_per_second * training_flops(self.stage, causal=True)
        full = tokens_per_second * training_flops(self.stage, causal=False)
        rates = {"tokens_per_second": tokens_per_second, "flops_per_second": causal}
        if self.peak:
            rates |= {"mfu_causal": causal / self.peak, "mfu": full / self.peak}
        return rates

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time of the block. All steps before it must have been computed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.time += time.perf_counter() - began


class Metrics:
    """Writes the metrics of a stage; does nothing on other hosts than the first.

    Args:
      folder: the stage's folder.
      name: arm and stage, as in main/code.
      stage: the config.
      start: step from which the stage resumes. Lines of steps that are computed again are dropped
        from metrics.jsonl: those of later steps, and of a stage that starts anew also step 0.
    """

    def __init__(self, folder: StageFolder, name: str, stage: Stage, start: int):
        self.path, self.name, self.stage = folder.metrics, name, stage
        self.first_host = jax.process_index() == 0
        if not self.first_host:
            return
        # Importing it takes a second, which only the host that writes should wait for.
        from tensorboardX import SummaryWriter

        # Seconds continue from the last line that is kept, as if the run had not been interrupted.
        kept = [line for line in read_metrics(self.path) if 0 < start >= line["step"]]
        self.lines = [json.dumps(line) for line in kept]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        self.began = time.perf_counter()
        # Step and time of the first loss that was written, from which the time left is estimated.
        self.first: tuple[int, float] | None = None
        # Drops the lines of steps that are computed again; from here on lines are appended.
        self._rewrite()
        self.board = SummaryWriter(str(folder.tensorboard), purge_step=start if start else None)
        self.console = plain_console()
        # The default columns without markup in the name of the stage.
        name_column = TextColumn("{task.description}", "progress.description", markup=False)
        columns = (name_column, *Progress.get_default_columns()[1:])
        is_silent = not self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, disable=is_silent)
        self.bar = self.progress.add_task(name, total=stage.steps, completed=start)
        self.progress.start()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Records metrics.

        Args:
          step: number of updates of the model.
          numbers: the metrics by name.

        Raises:
          UserError: if metrics.jsonl cannot be written.
        """
        if not self.first_host:
            return
        seconds = self.seconds_before + time.perf_counter() - self.began
        line = json.dumps({"step": step, **numbers, "seconds": round(seconds, 3)})
        self.lines.append(line)
        # Objects in a bucket cannot be appended to: there `flush` writes the full file.
        if not is_bucket(self.path):
            try:
                with self.path.open("a") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        for key, value in numbers.items():
            self.board.add_scalar(key, value, step)
        self._show(step, numbers)

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        shown = [form.format(numbers[key]) for key, form in SHOWN.items() if key in numbers]
        text = "  ".join([f"{self.name} step {step}/{self.stage.steps}", *shown])
        # The bar shows the last metrics. A file or a pipe has no bar and gets a line each time.
        self.progress.update(self.bar, completed=step, description=text)
        if not self.console.is_terminal or "validation_loss" in numbers:
            text = "  ".join([text, *self._time_left(step, numbers)])
            self.console.print(text, soft_wrap=True)

    def _time_left(self, step: int, numbers: dict[str, float]) -> list[str]:
        """Returns the time that the stage will still take as one text, [] if it is not known.

        It is known from the second loss on: the first one includes compiling.
        """
        now = time.perf_counter()
        if self.first is None:
            self.first = (step, now) if "loss" in numbers else None
            return []
        steps, seconds = step - self.first[0], now - self.first[1]
        if steps <= 0 or step >= self.stage.steps:
            return []
        return [f"{duration(seconds / steps * (self.stage.steps - step))} left"]

    def flush(self) -> None:
        """Makes all metrics so far visible to readers of the files."""
        if self.first_host:
            self.board.flush()
            if is_bucket(self.path):
                self._rewrite()

    def _rewrite(self) -> None:
        write_file(self.path, "".join(f"{line}\n" for line in self.lines))

    def close(self) -> None:
        """Writes the rest and closes the files and the progress bar."""
        if self.first_host:
            self.flush()
            self.progress.stop()
            self.board.close()

"""Where a stage's numbers go: a line of metrics.jsonl, TensorBoard, and the terminal with the time left."""

from __future__ import annotations

import json
import time

import jax
from etils import epath
from rich.console import Console
from rich.progress import Progress

from codellama_jax.accounting import PEAK_FLOPS, flops_per_token
from codellama_jax.config import Stage

SHOWN = {
    "loss": "loss {:.4f}",
    "validation_loss": "validation loss {:.4f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu_causal": "MFU {:.1%}",
}


def read_metrics(path: epath.Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl; one that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


class Throughput:
    """Rates over the time since the last call. FLOPs count every position of a row, in both conventions for attention."""

    def __init__(self, stage: Stage):
        self.stage, self.time, self.step = stage, time.perf_counter(), None
        self.peak = PEAK_FLOPS.get(jax.devices()[0].device_kind, 0) * jax.device_count()

    def rates(self, step: int) -> dict[str, float]:
        """Returns tokens/s, FLOP/s (causal) and, where the device's peak is known, both MFUs; nothing after a pause or a compilation."""
        now, before, first = time.perf_counter(), self.time, self.step
        self.time, self.step = now, step
        if first is None:
            return {}
        data = self.stage.data
        tokens_per_second = (step - first) * data.batch_size * data.seq_len / (now - before)
        flops = {causal: tokens_per_second * flops_per_token(self.stage.model, data.seq_len, causal) for causal in (True, False)}
        rates = {"tokens_per_second": tokens_per_second, "flops_per_second": flops[True]}
        return rates | ({"mfu_causal": flops[True] / self.peak, "mfu": flops[False] / self.peak} if self.peak else {})

    def pause(self) -> None:
        """Leaves out what happens until the next step: an evaluation, a checkpoint."""
        self.step = None


class Metrics:
    """Writes a stage's numbers, on the first host only. Lines past `start` are dropped: the run goes on from there."""

    def __init__(self, folder: epath.Path, name: str, stage: Stage, start: int):
        self.path, self.name, self.stage = folder / "metrics.jsonl", name, stage
        self.first_host = jax.process_index() == 0
        if not self.first_host:
            return
        from tensorboardX import SummaryWriter

        kept = [line for line in read_metrics(self.path) if line["step"] <= start]
        self.lines = [json.dumps(line) for line in kept]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        self.began = time.perf_counter()
        self.path.write_text("".join(f"{line}\n" for line in self.lines))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start if start else None)
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
        if not str(self.path).startswith("gs://"):  # an object store cannot append: there the file is written by flush()
            with self.path.open("a") as file:
                file.write(line + "\n")
        for key, value in numbers.items():
            self.board.add_scalar(key, value, step)
        self._show(step, numbers)

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        words = [form.format(numbers[key]) for key, form in SHOWN.items() if key in numbers]
        text = "  ".join([f"{self.name} step {step}/{self.stage.steps}", *words])
        self.progress.update(self.bar, completed=step, description=text)
        if not self.console.is_terminal or "validation_loss" in numbers:
            self.console.print(text, highlight=False)

    def flush(self) -> None:
        if self.first_host:
            self.board.flush()
            if str(self.path).startswith("gs://"):
                self.path.write_text("".join(f"{line}\n" for line in self.lines))

    def close(self) -> None:
        if self.first_host:
            self.flush()
            self.progress.stop()
            self.board.close()

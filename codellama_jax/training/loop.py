"""Trains one stage: restore or start, then step, watch, evaluate and save until the last step."""

from __future__ import annotations

import collections
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.config import Stage
from codellama_jax.data.pipeline import Batches
from codellama_jax.errors import UserError
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import Stopped, say
from codellama_jax.sharding.mesh import ROWS, batch_sharding, check_attention, check_mesh, on_mesh
from codellama_jax.training.metrics import Metrics, Throughput
from codellama_jax.training.step import (
    BATCH_DTYPES,
    abstract_state,
    compile_eval_step,
    compile_train_step,
    fresh_state,
    init_state,
)

IN_FLIGHT = 2  # steps dispatched before the numbers of an earlier one are waited for


def owned_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of the global batch that lie on this host's devices."""
    placed = NamedSharding(mesh, PartitionSpec(ROWS)).addressable_devices_indices_map((batch_size,))
    return sorted({row for (rows,) in placed.values() for row in range(batch_size)[rows]})


def place(
    batch: dict[str, np.ndarray], rows: list[int], batch_size: int, mesh: Mesh
) -> dict[str, jax.Array]:
    """Makes global arrays [batch_size, T] from the rows that this host holds."""
    where = {row: i for i, row in enumerate(rows)}

    def globally(local: np.ndarray) -> jax.Array:
        part = lambda index: local[[where[row] for row in range(batch_size)[index[0]]]][
            :, *index[1:]
        ]
        return jax.make_array_from_callback(
            (batch_size, *local.shape[1:]), batch_sharding(mesh), part
        )

    return {key: globally(batch[key]) for key in BATCH_DTYPES}


def stop_flags(stop: int, rows: list[int], batch_size: int, mesh: Mesh) -> jax.Array:
    """Returns a flag per sequence: all hosts learn in the same step that one has to stop."""
    part = lambda index: np.full(len(range(batch_size)[index[0]]), stop, np.int32)
    return jax.make_array_from_callback(
        (batch_size,), NamedSharding(mesh, PartitionSpec(ROWS)), part
    )


@contextmanager
def noticing_signals() -> Iterator[Callable[[], int]]:
    """Yields a function that returns which of SIGTERM and SIGINT came, 0 for none.

    A second SIGINT interrupts at once.
    """
    came = []

    def notice(number, frame):
        if number == signal.SIGINT and came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, notice) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StageRun:
    """The parts of a stage in progress; `train_stage` drives it."""

    def __init__(
        self,
        name: str,
        stage: Stage,
        folder: StageFolder,
        mesh: Mesh,
        batches: Batches,
        rows: list[int],
        validation: list[dict],
    ):
        self.name, self.stage, self.folder, self.mesh = name, stage, folder, mesh
        self.batches, self.rows, self.validation = batches, rows, validation
        self.checkpoints = Checkpoints(folder.checkpoints, stage)
        self.train_step = compile_train_step(stage, mesh)
        self.eval_step = compile_eval_step(stage, mesh)
        self.pending: collections.deque = collections.deque()
        self.throughput = Throughput(stage)
        self.tokens, self.stop = 0, 0

    def start(self, initial: Callable[[], Any] | None, seed: int) -> int:
        """Restores the newest checkpoint, or begins with `initial` or random parameters.

        Returns the step.
        """
        restored = self.checkpoints.restore(abstract_state(self.stage, self.mesh))
        if restored:
            step, self.state, cursors = restored
            self.batches.restore(cursors["rows"])
            self.tokens = cursors["tokens"]
            return step
        self.state = (
            fresh_state(self.stage, self.mesh, initial())
            if initial
            else init_state(self.stage, self.mesh, seed)
        )
        return 0

    def train(self, step: int, stop: int) -> None:
        batch = next(self.batches)
        placed = place(batch, self.rows, self.stage.data.batch_size, self.mesh)
        placed["stop"] = stop_flags(stop, self.rows, self.stage.data.batch_size, self.mesh)
        self.state, metrics = self.train_step(self.state, placed)
        self.pending.append((step + 1, metrics, batch))

    def settle(self, in_flight: int) -> None:
        """Reads the numbers of all but the newest `in_flight` steps.

        Sets `stop` to the signal that a host received.
        """
        while len(self.pending) > in_flight:
            step, metrics, batch = self.pending.popleft()
            numbers = {k: float(v) for k, v in metrics.items()}
            self.stop = max(self.stop, int(numbers.pop("stop")))
            self.tokens += int(numbers["tokens"])
            if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
                raise UserError(self._not_finite(step, numbers, batch))
            if step % self.stage.log_every == 0 or step in (1, self.stage.steps):
                self.metrics.write(
                    step, numbers | {"tokens": self.tokens} | self.throughput.rates(step)
                )

    def _not_finite(self, step: int, numbers: dict[str, float], batch: dict) -> str:
        """Returns the message for a loss or gradient that is infinite or not a number."""
        option = f"--{self.name.split('/')[-1]}.optimizer"
        optimizer = self.stage.optimizer
        names = self.batches.document_names(batch)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return (
            f"{self.name}: loss {numbers['loss']}, gradient norm {numbers['gradient_norm']} at step"
            f" {step}. Try a lower rate ({option}.peak-lr, now {optimizer.peak_lr:g}) or a longer"
            f" warm-up ({option}.warmup-steps, now {optimizer.warmup_steps}); if it comes again at"
            f" this step, look at the documents of the batch: {', '.join(names[:3])}{more};"
            f" last good checkpoint: {self.checkpoints.last_good()}"
        )

    def evaluate(self, step: int) -> None:
        sums = [self.eval_step(self.state.params, rows) for rows in self.validation]
        loss, tokens = (sum(float(v) for v in column) for column in zip(*sums))
        self.metrics.write(step, {"validation_loss": loss / tokens})
        self.metrics.flush()
        self.throughput.pause()

    def save(self, step: int) -> None:
        """Saves only what is known to be finite."""
        self.settle(0)
        self.checkpoints.save(step, self.state, self.batches.state(), self.tokens)
        self.throughput.pause()


def train_stage(run: StageRun, initial: Callable[[], Any] | None, seed: int) -> None:
    """Trains to the last step and marks the stage done.

    Raises Stopped after saving if SIGTERM or Ctrl-C came.
    """
    stage = run.stage
    peers.name_last_good(run.checkpoints.last_good)
    say(f"{run.name}: loading the newest checkpoint or the first parameters")
    first = run.start(initial, seed)
    begun = f"resumes at step {first}" if first else "starts"
    say(f"{run.name}: {begun}, compiling for {stage.steps} steps")
    run.metrics = Metrics(run.folder, run.name, stage, first)
    try:
        with noticing_signals() as signalled:
            if first == 0:
                run.evaluate(0)
            if stage.steps == 0 and not run.checkpoints.manager.all_steps():
                run.save(0)
            for step in range(first, stage.steps):
                run.train(step, signalled())
                run.settle(IN_FLIGHT)
                done = step + 1
                if done % stage.eval_every == 0 or done == stage.steps:
                    run.settle(0)
                    run.evaluate(done)
                if done % stage.checkpoint_every == 0 or done == stage.steps or run.stop:
                    run.save(done)
                if run.stop and done < stage.steps:
                    run.checkpoints.wait()
                    raise Stopped(run.stop)
            run.checkpoints.wait()
            if jax.process_index() == 0:
                run.folder.mark_done(stage.steps, run.tokens)
            if signalled():
                raise Stopped(signalled())
    finally:
        run.metrics.close()
        run.checkpoints.close()
        run.batches.close()


def place_validation(batches: list[dict], stage: Stage, mesh: Mesh) -> list[dict[str, jax.Array]]:
    """Regroups packed validation sequences into batches that the mesh can shard.

    The last batch is filled with padding.
    """
    size = mesh.shape["data"] * mesh.shape["fsdp"]
    size *= max(1, stage.data.batch_size // stage.micro_batches // size)
    rows = {k: np.concatenate([b[k] for b in batches]) for k in BATCH_DTYPES}
    rows = {k: np.pad(v, ((0, -len(v) % size), (0, 0))) for k, v in rows.items()}
    whole = list(range(size))
    return [
        place({k: v[i : i + size] for k, v in rows.items()}, whole, size, mesh)
        for i in range(0, len(rows["tokens"]), size)
    ]


def check_stage(stage: Stage, mesh: Mesh) -> None:
    """Raises UserError where the stage does not fit the mesh; called before anything is written."""
    check_attention(mesh, stage.model)
    check_mesh(mesh, stage.model, stage.data.batch_size, stage.micro_batches, stage.data.seq_len)
    with on_mesh(mesh):
        abstract_state(stage, mesh)

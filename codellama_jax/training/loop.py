"""Trains one stage: restores it or starts it, then steps, evaluates and saves until it is done."""

from __future__ import annotations

import collections
import functools
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints.base import Base, recorded_base
from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.loading import load_frozen
from codellama_jax.config import Stage
from codellama_jax.data.pipeline import Batches
from codellama_jax.errors import UserError
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import Stopped, gather, say
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

# Steps that may be dispatched and not yet read. The host prepares the next batch while the device
# computes, and a loss that is not finite is still noticed within two steps.
IN_FLIGHT = 2


def owned_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the indices of the sequences of a global batch that are on this host's devices."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    owned: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        if index is not None:
            owned.update(range(batch_size)[index[0]])
    return sorted(owned)


def place(
    batch: dict[str, np.ndarray], rows: list[int], batch_size: int, mesh: Mesh
) -> dict[str, jax.Array]:
    """Returns global arrays (batch_size, T) from the sequences of this host.

    Args:
      batch: arrays (sequences of this host, T).
      rows: index of each of these sequences in the global batch.
      batch_size: sequences of all hosts.
      mesh: mesh of all devices.
    """
    local_index = {row: index for index, row in enumerate(rows)}

    def shard(array: np.ndarray, index: Any) -> np.ndarray:
        local_rows = [local_index[row] for row in range(batch_size)[index[0]]]
        return array[local_rows][:, *index[1:]]

    placed: dict[str, jax.Array] = {}
    for key in BATCH_DTYPES:
        shape = (batch_size, *batch[key].shape[1:])
        # JAX calls the function for each device of this host with the slices that it holds.
        shards = functools.partial(shard, batch[key])
        placed[key] = jax.make_array_from_callback(shape, batch_sharding(mesh), shards)
    return placed


def stop_flags(stop: int, batch_size: int, mesh: Mesh) -> jax.Array:
    """Returns int32 (batch_size,), a flag per sequence with this host's value of `stop`.

    The train step takes the maximum over all sequences, and with it over all hosts, so that all
    hosts stop after the same step.
    """

    def shard(index: Any) -> np.ndarray:
        return np.full(len(range(batch_size)[index[0]]), stop, np.int32)

    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    return jax.make_array_from_callback((batch_size,), sharding, shard)


@contextmanager
def noticing_signals() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the number of the first SIGTERM or SIGINT, 0 for none.

    The signals do not interrupt the block, so that the stage can save first. A second SIGINT
    interrupts at once.
    """
    received: list[int] = []

    def notice(number: int, frame: Any) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    def first_signal() -> int:
        return received[0] if received else 0

    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, notice) for number in signals}
    try:
        yield first_signal
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class StageRun:
    """The parts of a stage in progress, which `train_stage` calls in order.

    Args:
      name: arm and stage, as in main/code.
      stage: the config.
      folder: where its files are written.
      mesh: mesh of all devices.
      batches: the stream of training batches of this host.
      rows: indices of this host's sequences in a global batch.
      validation: batches of validation sequences, already on the mesh.
    """

    metrics: Metrics

    def __init__(
        self,
        name: str,
        stage: Stage,
        folder: StageFolder,
        mesh: Mesh,
        batches: Batches,
        rows: list[int],
        validation: list[dict[str, jax.Array]],
    ):
        self.name, self.stage, self.folder, self.mesh = name, stage, folder, mesh
        self.batches, self.rows, self.validation = batches, rows, validation
        self.checkpoints = Checkpoints(folder.checkpoints, stage)
        self.eval_step = compile_eval_step(stage, mesh)
        # (step, metrics on the device, host's batch) of dispatched steps that were not read yet.
        self.pending: collections.deque = collections.deque()
        self.throughput = Throughput(stage)
        self.tokens, self.stop = 0, 0
        self.base: Base | None = None  # of adapters: the weights that they are added to

    def start(self, initial: Callable[[], Any] | None, seed: int) -> int:
        """Restores the newest checkpoint, or starts with `initial` or with random parameters.

        Args:
          initial: returns the first parameters, or the `Base` of adapters; None draws random ones.
          seed: of the random parameters and of dropout.

        Returns:
          The number of steps that the restored state has been trained for.
        """
        self.train_step = compile_train_step(self.stage, self.mesh, seed)
        restored = self.checkpoints.restore(abstract_state(self.stage, self.mesh))
        if restored:
            step, self.state, cursors = restored
            self.batches.restore(cursors["rows"])
            self.tokens = cursors["tokens"]  # tokens learned so far, for the log
            if self.has_adapters:
                self._freeze(recorded_base(self.folder.checkpoint(step)))
            return step
        if self.has_adapters:
            assert initial, "Stage refuses adapters of random weights"
            self.state = init_state(self.stage, self.mesh, seed)
            self._freeze(initial())
        elif initial:
            self.state = fresh_state(self.stage, self.mesh, initial())
        else:
            self.state = init_state(self.stage, self.mesh, seed)
        return 0

    @property
    def has_adapters(self) -> bool:
        """Whether adapters train in the place of the weights."""
        return self.stage.lora.rank is not None

    def _freeze(self, base: Base) -> None:
        """Loads the weights that adapters are added to, into the state."""
        frozen, self.base = load_frozen(self.stage, base, self.mesh)
        self.state = self.state.replace(frozen=frozen)

    def train(self, step: int, stop: int) -> None:
        """Dispatches one train step.

        Args:
          step: number of steps before this one.
          stop: signal that this host received, 0 for none.
        """
        # The state of the input stream after this batch is saved with the step's checkpoint.
        batch = next(self.batches)
        placed = place(batch, self.rows, self.stage.data.batch_size, self.mesh)
        placed["stop"] = stop_flags(stop, self.stage.data.batch_size, self.mesh)
        self.state, metrics = self.train_step(self.state, placed)
        self.pending.append((step + 1, metrics, batch))

    def settle(self, in_flight: int) -> None:
        """Reads and records the metrics of all dispatched steps but the newest `in_flight`.

        Sets `stop` to the signal that any host received.

        Raises:
          UserError: for a loss or a gradient that is not finite.
        """
        while len(self.pending) > in_flight:
            step, metrics, batch = self.pending.popleft()
            # Reading a number waits until the device has computed it.
            numbers = {key: float(value) for key, value in metrics.items()}
            # The flag has passed through the train step, so every host reads the same value here
            # and stops after the same step, even if only one host received the signal.
            self.stop = max(self.stop, int(numbers.pop("stop")))
            self.tokens += int(numbers["tokens"])
            if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
                raise UserError(self._not_finite(step, numbers, batch))
            if step % self.stage.log_every == 0 or step in (1, self.stage.steps):
                numbers["tokens"] = self.tokens
                self.metrics.write(step, numbers | self.throughput.rates(step))

    def _not_finite(self, step: int, numbers: dict[str, float], batch: dict) -> str:
        """Returns the message for a loss or gradient that is infinite or not a number."""
        # The stage's name in the command line is the part after the arm's.
        option = f"--{self.name.split('/')[-1]}.optimizer"
        optimizer = self.stage.optimizer
        names = self.batches.document_names(batch)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return (
            f"{self.name}: loss {numbers['loss']}, gradient norm {numbers['gradient_norm']} at step"
            f" {step}. Try a lower rate ({option}.peak-lr, now {optimizer.peak_lr:g}) or a longer"
            f" warm-up ({option}.warmup-steps, now {optimizer.warmup_steps}). If it happens again"
            f" at this step, look at the documents of the batch: {', '.join(names[:3])}{more};"
            f" last good checkpoint: {self.checkpoints.last_good()}"
        )

    def evaluate(self, step: int) -> None:
        """Records the loss in nats per token over the validation sequences.

        Raises:
          UserError: for a loss that is not finite.
        """
        self.settle(0)
        params = (self.state.params, self.state.frozen) if self.has_adapters else self.state.params
        # Evaluating is not training: its time must not lower the tokens per second.
        with self.throughput.pause():
            # All batches are dispatched before the first result is read.
            results = [self.eval_step(params, batch) for batch in self.validation]
            loss = sum(float(batch_loss) for batch_loss, _ in results)
            tokens = sum(float(batch_tokens) for _, batch_tokens in results)
            # The last update of a stage is in no training loss, and neither are the weights of
            # `init` in a stage of 0 steps: a checkpoint of such weights must not count as done.
            if not math.isfinite(loss):
                raise UserError(
                    f"{self.name}: validation loss {loss} at step {step}: the weights, or what"
                    f" {self.stage.model.compute_dtype} computes with them, are not finite. Check"
                    f" the weights of init {self.stage.init}, or try model.compute_dtype float32;"
                    f" last good checkpoint: {self.checkpoints.last_good()}"
                )
            self.metrics.write(step, {"validation_loss": loss / tokens})
            self.metrics.flush()

    def save(self, step: int) -> None:
        """Saves a checkpoint, after all dispatched steps are known to be finite."""
        self.settle(0)
        base = self.base.reference(self.folder) if self.base else None
        with self.throughput.pause():
            self.checkpoints.save(step, self.state, self.batches.state(), self.tokens, base)


def train_stage(run: StageRun, initial: Callable[[], Any] | None, seed: int) -> None:
    """Trains to the last step and marks the stage done.

    Args:
      run: the parts of the stage.
      initial, seed: as in `StageRun.start`.

    Raises:
      Stopped: after saving, if a host received SIGTERM or Ctrl-C.
      UserError: for a loss or a gradient that is not finite.
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
            # A stage without steps still saves its parameters, for the stages that start from it.
            if stage.steps == 0 and not run.checkpoints.manager.all_steps():
                run.save(0)
            # The order within a step matters. A step is dispatched first, so that the device is
            # busy while the host reads the metrics of an earlier one. Then follow evaluation and
            # saving, which wait for the step.
            for step in range(first, stage.steps):
                run.train(step, signalled())
                run.settle(IN_FLIGHT)
                done = step + 1
                if done % stage.eval_every == 0 or done == stage.steps:
                    run.evaluate(done)
                if done % stage.checkpoint_every == 0 or done == stage.steps or run.stop:
                    run.save(done)
                # After the last step the stage is complete, and the signal is handled below.
                if run.stop and done < stage.steps:
                    run.checkpoints.wait()
                    raise Stopped(run.stop)
            # Checkpoints are written in the background. A stage counts as done only after the last
            # one is complete.
            run.checkpoints.wait()
            if jax.process_index() == 0:
                run.folder.mark_done(stage.steps, run.tokens)
            # A signal after the last step was dispatched is in no flag. The hosts without it would
            # wait in the next stage for the one that stops.
            received = gather({str(jax.process_index()): signalled()})
            if stop := max(received.values()):
                raise Stopped(stop)
    finally:
        run.metrics.close()
        run.checkpoints.close()
        run.batches.close()


def place_validation(batches: list[dict], stage: Stage, mesh: Mesh) -> list[dict[str, jax.Array]]:
    """Returns the validation sequences in batches of another size, placed on the mesh.

    Args:
      batches: arrays (sequences, T), the same on all hosts.
      stage: the stage.
      mesh: mesh of all devices.
    """
    # The largest multiple of the number of shards that is at most a micro-batch, whose memory the
    # train step needs anyway.
    size = mesh.shape["data"] * mesh.shape["fsdp"]
    size *= max(1, stage.data.batch_size // stage.micro_batches // size)
    sequences = {}
    for key in BATCH_DTYPES:
        joined = np.concatenate([batch[key] for batch in batches])
        # Padding sequences have loss weight 0 and do not change the validation loss.
        sequences[key] = np.pad(joined, ((0, -len(joined) % size), (0, 0)))
    all_rows = list(range(size))
    placed = []
    for start in range(0, len(sequences["tokens"]), size):
        part = {key: array[start : start + size] for key, array in sequences.items()}
        placed.append(place(part, all_rows, size, mesh))
    return placed


def check_stage(stage: Stage, mesh: Mesh) -> None:
    """Raises UserError if the stage cannot be trained, on this mesh or at all.

    It allocates nothing, so that it can run before any file is written.
    """
    # Not in `config.Stage`: a model may be imported, and generate, in float16.
    if stage.steps and stage.model.compute_dtype == "float16":
        problem = " is float16, which loses small gradients: training has no loss scaling"
        raise FieldError(("model", "compute_dtype"), f"{problem}; use bfloat16 or float32")
    check_attention(mesh, stage.model)
    check_mesh(mesh, stage.model, stage.data.batch_size, stage.micro_batches, stage.data.seq_len)
    # Tracing the model finds parameters that the mesh leaves replicated.
    with on_mesh(mesh):
        abstract_state(stage, mesh)

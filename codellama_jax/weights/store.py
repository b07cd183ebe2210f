"""Runs as sources and targets of weights, a layer of one parameter at a time in memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, find_trained
from codellama_jax.checkpoints.loading import first_line, stored_parameter
from codellama_jax.config import (
    DataConfig,
    Experiment,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
    to_dict,
)
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.files import write_json
from codellama_jax.system.progress import counted
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.weights.folders import whole_folder
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import (
    Index,
    Source,
    is_stacked,
    join,
    one_layer,
    parameters,
    places,
    source_bytes,
    split,
)

ARM, STAGE = "imported", "weights"
# A stored layer is split into so many chunks along the model width: a device reads little that
# it does not hold.
CHUNKS = 16


class Stack:
    """A parameter that is not in memory, which Orbax gets in place of an array."""

    def __init__(self, source: Source, param: str, advance: Callable[[int], None]):
        self.source, self.param, self.advance = source, param, advance
        self.shape, self.axes = parameters(source.model)[param]
        dtypes = set()
        for name, place in places(source.model).items():
            if place.param == param:
                dtypes.add(source.dtypes[name])
        self.dtype = np.result_type(*dtypes)
        self.size, self.ndim = math.prod(self.shape), len(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def chunks(self) -> list[int]:
        """Returns the shape of a chunk, which is stored and read at once: a layer's part."""
        sizes = []
        for name, n in zip(self.axes, self.shape):
            sizes.append(n // CHUNKS if name == "embed" and n % CHUNKS == 0 else n)
        return [1, *sizes[1:]] if is_stacked(self.param) else sizes

    def pieces(self) -> Iterator[tuple[Index, np.ndarray]]:
        """Yields (index, part), a layer at a time."""
        full = tuple(slice(0, n) for n in one_layer(self.source.model, self.param))
        for layer in range(self.source.model.n_layers if is_stacked(self.param) else 1):
            part = join(self.source, self.param, layer, full).astype(self.dtype)
            yield (layer, *full) if is_stacked(self.param) else full, part
            self.advance(part.nbytes)


class StackHandler(ocp.type_handlers.NumpyHandler):
    """Writes a `Stack` as Orbax writes an array, but one piece at a time over all parameters.

    An error is kept in `error`: raised, Orbax would leave other writes running behind it.
    """

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self.turn = asyncio.Semaphore(1)
        self.error: BaseException | None = None

    async def _open_and_write(
        self, value: Stack, tspec: dict, ts_context: tensorstore.Context
    ) -> None:
        async with self.turn:
            if self.error:
                return
            try:
                tspec["metadata"]["chunks"] = value.chunks()
                array = await tensorstore.open(
                    tensorstore.Spec(tspec), create=True, open=True, context=ts_context
                )
                for where, part in value.pieces():
                    await array[where].write(part)
                    if self.error:
                        break
            except Exception as error:
                self.error = error


def write_run(
    source: Source, tokenizer: Tokenizer, kind: str, folder: epath.Path, integrity: bool = False
) -> None:
    """Writes a model, in its own dtypes, as the folder of a run that has trained 0 steps.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      kind: hf or meta, the layout that it was published in.
      folder: a folder that does not exist yet.
      integrity: writes checksums of the files, too.
    """
    data = DataConfig(seq_len=source.context, batch_size=1, mixture=MixtureConfig())
    init = f"{kind}:{source.name}"
    stage = Stage(source.model, data, OptimizerConfig(peak_lr=0.0), steps=0, init=init)
    arms = {ARM: {STAGE: stage}}
    experiment = Experiment(folder.name, kind, arms, TokenizerConfig("tokenizer.model"))
    with whole_folder(folder) as part:
        run = RunFolder(part)
        inner = run.stage(ARM, STAGE)
        size = source_bytes(source)
        with counted("importing", size, unit="bytes", quiet=not is_first()) as advance:
            _save(_tree(source, advance), inner.checkpoint(0), folder)
        write_json(inner.config, to_dict(stage))
        inner.mark_done(step=0, tokens=0)
        tokenizer.save(run.tokenizer)
        write_json(run.config, to_dict(experiment))
        if integrity:
            write_checksums(part)


def _tree(source: Source, advance: Callable[[int], None]) -> dict:
    """Returns the nested parameters, none of which is in memory."""
    tree: dict = {}
    for param in parameters(source.model):
        *parents, name = param.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = Stack(source, param, advance)
    return tree


def _save(tree: dict, checkpoint: epath.Path, folder: epath.Path) -> None:
    """Writes a checkpoint. Raises UserError naming the run's folder where that fails."""
    handler = StackHandler()
    registry = ocp.type_handlers.create_type_handler_registry((Stack, handler))
    items = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    )
    try:
        with _stopped_by_ctrl_c(handler), ocp.Checkpointer(items) as checkpointer:
            checkpointer.save(checkpoint, ocp.args.Composite(params=ocp.args.PyTreeSave(tree)))
    except Exception as error:  # Orbax misses a parameter after an error, or has one of its own
        handler.error = handler.error or error
    if isinstance(handler.error, UserError | KeyboardInterrupt):
        raise handler.error
    if handler.error:
        problem = f"cannot write {folder}: {first_line(handler.error)}"
        raise UserError(problem) from handler.error


@contextlib.contextmanager
def _stopped_by_ctrl_c(handler: StackHandler) -> Iterator[None]:
    """Lets Ctrl-C end the writes after a piece.

    Raised at once, it would leave threads that crash the interpreter while it exits.
    """

    def stop(*_: object) -> None:
        handler.error = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def open_run(run: epath.Path, arm: str, stage: str) -> Source:
    """Opens the newest checkpoint of a run's stage. Raises UserError if none can be read."""
    folder, config = find_trained(run, arm, stage)
    checkpoint = folder.checkpoint(max(folder.steps()))
    base = str(checkpoint)
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**29}})
    stores, dtypes = {}, {}
    for name, place in places(config.model).items():
        spec = stored_parameter(checkpoint, place.param)
        stores[name] = _result(base, tensorstore.open(spec, context=context))
        dtypes[name] = stores[name].dtype.numpy_dtype

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        is_layer = is_stacked(places(config.model)[name].param)
        store = stores[name][layer] if is_layer else stores[name]

        def section(where: Index) -> np.ndarray:
            return _result(base, store[where].read())

        return split(config.model, name, section)[index]

    return Source(str(folder), config.model, config.data.seq_len, dtypes, read)


def _result(base: str, future: tensorstore.Future) -> Any:
    """Returns the result of a read. Raises UserError naming the checkpoint if it fails."""
    try:
        return future.result()
    except (ValueError, OSError) as error:  # TensorStore raises ValueError for most damage
        raise UserError(f"{base} cannot be read: {first_line(error)}") from error

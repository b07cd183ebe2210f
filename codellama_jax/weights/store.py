"""Reads and writes runs as sources and targets of weights.

Only one layer of one parameter is in memory at any time.
"""

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

from codellama_jax.checkpoints.folder import RunFolder, StageFolder, find_trained
from codellama_jax.checkpoints.loading import (
    first_line,
    load_params,
    silence_orbax,
    stored_array,
)
from codellama_jax.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
    to_dict,
)
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import is_first
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.system.files import write_json
from codellama_jax.system.progress import counted
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.weights.folders import complete_folder
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

silence_orbax()
ARM, STAGE = "imported", "weights"
# Chunks of a stored layer along the model width. A chunk is read in full, so that with more chunks
# a device reads less that it does not hold.
CHUNKS = 16


class Stack:
    """A parameter that is read while it is written, and stands for an array in Orbax.

    `shape`, `dtype`, `size`, `ndim` and `nbytes` are those that Orbax reads from an array.
    """

    def __init__(self, source: Source, param: str, advance: Callable[[int], None]):
        self.source, self.param, self.advance = source, param, advance
        self.shape, self.axes = parameters(source.model)[param]
        # Published tensors that are fused here may have different types.
        dtypes = set()
        for name, place in places(source.model).items():
            if place.param == param:
                dtypes.add(source.dtypes[name])
        # One array has one type, which must not round any of them.
        self.dtype = np.result_type(*dtypes)
        self.size, self.ndim = math.prod(self.shape), len(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def chunks(self) -> list[int]:
        """Returns the shape of a chunk: a part of one layer, split along the model width."""
        sizes = []
        for name, length in zip(self.axes, self.shape):
            is_split = name == "embed" and length % CHUNKS == 0
            sizes.append(length // CHUNKS if is_split else length)
        return [1, *sizes[1:]] if is_stacked(self.param) else sizes

    def pieces(self) -> Iterator[tuple[Index, np.ndarray]]:
        """Yields (index, part) of the parameter, one layer at a time."""
        full = tuple(slice(0, n) for n in one_layer(self.source.model, self.param))
        stacked = is_stacked(self.param)
        for layer in range(self.source.model.n_layers if stacked else 1):
            part = join(self.source, self.param, layer, full).astype(self.dtype)
            yield (slice(layer, layer + 1), *full) if stacked else full, part
            self.advance(part.nbytes)


class StackHandler(ocp.type_handlers.NumpyHandler):
    """Writes each `Stack` like an array, but only one piece of one parameter at a time.

    An error is kept in `error` and not raised, because Orbax would leave other writes running.
    """

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        # Orbax writes all parameters concurrently, which would have a layer of each in memory.
        self.semaphore = asyncio.Semaphore(1)
        self.error: BaseException | None = None

    async def _open_and_write(
        self, value: Stack, tspec: dict, ts_context: tensorstore.Context
    ) -> None:
        async with self.semaphore:
            if self.error:
                return
            try:
                # Orbax's own chunk would be the complete parameter, or that of one device.
                tspec["metadata"]["chunks"] = value.chunks()
                array = await tensorstore.open(
                    tensorstore.Spec(tspec), create=True, open=True, context=ts_context
                )
                for index, part in value.pieces():
                    await array[index].write(part)
                    if self.error:
                        break
            except Exception as error:
                self.error = error


def write_run(
    source: Source, tokenizer: Tokenizer, kind: str, folder: epath.Path, integrity: bool = False
) -> None:
    """Writes a model as the folder of a run that has trained 0 steps, in the dtypes of the source.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      kind: the layout in which it was published, a key of `load.OPEN`: hf, meta, codegeex or gguf.
      folder: a folder that does not exist yet.
      integrity: whether to write checksums of the files as well.

    Raises UserError if the folder exists or cannot be written.
    """
    # The folder of an ordinary run with one arm and one stage, so that every command that reads
    # runs reads it. The values that only training uses are placeholders.
    data = DataConfig(seq_len=source.context, batch_size=1, mixture=MixtureConfig())
    init = f"{kind}:{source.name}"
    stage = Stage(source.model, data, OptimizerConfig(peak_lr=0.0), steps=0, init=init)
    arms = {ARM: {STAGE: stage}}
    experiment = Experiment(folder.name, kind, arms, TokenizerConfig(tokenizer.file_name))
    with complete_folder(folder) as part:
        run = RunFolder(part)
        inner = run.stage(ARM, STAGE)
        size = source_bytes(source)
        with counted("importing", size, unit="bytes", quiet=not is_first()) as advance:
            _save(_tree(source, advance), inner.checkpoint(0), folder)
        # As after training, the checkpoint comes first and the mark of a finished stage after it.
        write_json(inner.config, to_dict(stage))
        inner.mark_done(step=0, tokens=0)
        run.save_tokenizer(tokenizer)
        write_json(run.config, to_dict(experiment))
        if integrity:
            write_checksums(part)


def _tree(source: Source, advance: Callable[[int], None]) -> dict:
    """Returns the nested parameters, each a `Stack`."""
    tree: dict = {}
    for param in parameters(source.model):
        *parents, name = param.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = Stack(source, param, advance)
    return tree


def _save(tree: dict, checkpoint: epath.Path, folder: epath.Path) -> None:
    """Writes a checkpoint. Raises UserError naming `folder`, that of the run, if that fails."""
    handler = StackHandler()
    registry = ocp.type_handlers.create_type_handler_registry((Stack, handler))
    items = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    )
    try:
        with _stopped_by_ctrl_c(handler), ocp.Checkpointer(items) as checkpointer:
            checkpointer.save(checkpoint, ocp.args.Composite(params=ocp.args.PyTreeSave(tree)))
    except Exception as error:
        # After an error in the handler Orbax raises that a parameter is missing; the first is the
        # cause.
        handler.error = handler.error or error
    if isinstance(handler.error, UserError | KeyboardInterrupt):
        raise handler.error
    if handler.error:
        problem = f"cannot write {folder}: {first_line(handler.error)}"
        raise UserError(problem) from handler.error


@contextlib.contextmanager
def _stopped_by_ctrl_c(handler: StackHandler) -> Iterator[None]:
    """Makes Ctrl-C end the writes after the current piece.

    A KeyboardInterrupt at once would leave threads that crash the interpreter while it exits.
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
    # Orbax loads arrays in full; TensorStore reads the chunks of one layer.
    folder, config = find_trained(run, arm, stage)
    if config.lora.rank is not None:
        return _merged_source(folder, config)
    checkpoint = folder.checkpoint(max(folder.steps()))
    base = str(checkpoint)
    # q, k and v are parts of the same chunks: the cache, in bytes, spares reading them three times.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**29}})
    stores, dtypes = {}, {}
    for name, place in places(config.model).items():
        spec = stored_array(checkpoint, place.param)
        stores[name] = _result(base, tensorstore.open(spec, context=context))
        dtypes[name] = stores[name].dtype.numpy_dtype

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        is_layer = is_stacked(places(config.model)[name].param)
        store = stores[name][layer] if is_layer else stores[name]

        def section(part: Index) -> np.ndarray:
            return _result(base, store[part].read())

        return split(config.model, name, section)[index]

    return Source(str(folder), config.model, config.data.seq_len, dtypes, read)


def _merged_source(folder: StageFolder, config: Stage) -> Source:
    """Returns the model of a stage with adapters, which is in memory with the adapters added."""
    model = config.model
    params = load_params(folder, model, make_mesh(MeshConfig()))

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        param = places(model)[name].param
        array: Any = params
        for part in param.split("."):
            array = array[part]
        array = array[layer] if is_stacked(param) else array
        return split(model, name, lambda section: np.asarray(array[section]))[index]

    dtypes = dict.fromkeys(places(model), np.dtype(np.float32))
    return Source(str(folder), model, config.data.seq_len, dtypes, read)


def _result(base: str, future: tensorstore.Future) -> Any:
    """Returns the result of a read. Raises UserError naming the checkpoint, `base`, if it fails."""
    try:
        return future.result()
    except (ValueError, OSError) as error:  # TensorStore raises ValueError for most damage
        raise UserError(f"{base} cannot be read: {first_line(error)}") from error

"""A run's folder on either end: a checkpoint written, or read, a layer of one parameter at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from codellama_jax.config import DataConfig, Experiment, MixtureConfig, OptimizerConfig, Stage, TokenizerConfig, to_dict
from codellama_jax.errors import UserError
from codellama_jax.tokenizer import Tokenizer
from codellama_jax.training.checkpoint import checkpoint_steps, first_line, stage_folder
from codellama_jax.weights.layout import Index, Source, is_stacked, join, one_layer, parameters, places, source_bytes, split

ARM, STAGE = "imported", "weights"
CUTS = 16  # pieces of a stored layer along the model width, so that a device reads little beside its own


class Stack:
    """A parameter that is not in memory: what Orbax is given in place of an array."""

    def __init__(self, source: Source, param: str, advance: Callable[[int], None]):
        self.source, self.param, self.advance = source, param, advance
        self.shape, self.axes = parameters(source.model)[param]
        self.dtype = np.result_type(*{source.dtypes[name] for name, place in places(source.model).items() if place.param == param})
        self.size, self.ndim = math.prod(self.shape), len(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def chunks(self) -> list[int]:
        """Returns the shape of what is stored, and read, as one: a layer's part of the width."""
        cut = [n // CUTS if name == "embed" and n % CUTS == 0 else n for name, n in zip(self.axes, self.shape)]
        return [1, *cut[1:]] if is_stacked(self.param) else cut

    def pieces(self) -> Iterator[tuple[Index, np.ndarray]]:
        """Yields (where, part), a layer at a time."""
        whole = tuple(slice(0, n) for n in one_layer(self.source.model, self.param))
        for layer in range(self.source.model.n_layers if is_stacked(self.param) else 1):
            part = join(self.source, self.param, layer, whole).astype(self.dtype)
            yield (layer, *whole) if is_stacked(self.param) else whole, part
            self.advance(part.nbytes)


class StackHandler(ocp.type_handlers.NumpyHandler):
    """Writes a `Stack` as Orbax writes an array, but one piece at a time, whatever else is being written.

    What goes wrong is kept in `error`, since Orbax would leave other writes running behind it.
    """

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self.turn = asyncio.Semaphore(1)
        self.error: BaseException | None = None

    async def _open_and_write(self, value: Stack, tspec: dict, ts_context: tensorstore.Context) -> None:
        async with self.turn:
            if self.error:
                return
            try:
                tspec["metadata"]["chunks"] = value.chunks()
                array = await tensorstore.open(tensorstore.Spec(tspec), create=True, open=True, context=ts_context)
                for where, part in value.pieces():
                    await array[where].write(part)
                    if self.error:
                        break
            except Exception as error:
                self.error = error


@contextlib.contextmanager
def whole_folder(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a folder beside `path` that takes its name at the end, and is gone if that is not reached."""
    if path.exists():
        raise UserError(f"{path} is there already: name a new folder")
    part = path.with_name(f"{path.name}.part")
    if part.exists():
        part.rmtree()  # of a process that was killed
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(path)
    finally:
        if part.exists():
            part.rmtree()


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar; yields what is told of the bytes as they are done."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=jax.process_index() > 0) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def write_run(source: Source, tokenizer: Tokenizer, kind: str, folder: epath.Path) -> None:
    """Writes a model as the folder of a run that has trained 0 steps, in the dtypes that it has."""
    data = DataConfig(seq_len=source.context, batch_size=1, mixture=MixtureConfig())
    stage = Stage(source.model, data, OptimizerConfig(peak_lr=0.0), steps=0, init=f"{kind}:{source.name}")
    experiment = Experiment(folder.name, kind, {ARM: {STAGE: stage}}, TokenizerConfig("tokenizer.model"))
    with whole_folder(folder) as part, progress("importing", source_bytes(source)) as advance:
        inner = part / ARM / STAGE
        tree: dict = {}
        for param in parameters(source.model):
            *parents, name = param.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = Stack(source, param, advance)
        _save(tree, inner / "checkpoints" / "step_0")
        (inner / "config.json").write_text(json.dumps(to_dict(stage), indent=1))
        (inner / "done.json").write_text(json.dumps({"step": 0, "tokens": 0}))
        tokenizer.save(part / "tokenizer.model")
        (part / "config.json").write_text(json.dumps(to_dict(experiment), indent=1))


def _save(tree: dict, folder: epath.Path) -> None:
    handler = StackHandler()
    registry = ocp.type_handlers.create_type_handler_registry((Stack, handler))
    items = ocp.CompositeCheckpointHandler(params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry))
    with _stopped_by_ctrl_c(handler), ocp.Checkpointer(items) as checkpointer:
        checkpointer.save(folder, ocp.args.Composite(params=ocp.args.PyTreeSave(tree)))
    if isinstance(handler.error, UserError | KeyboardInterrupt):
        raise handler.error
    if handler.error:
        raise UserError(f"the import did not get through: {first_line(handler.error)}") from handler.error


@contextlib.contextmanager
def _stopped_by_ctrl_c(handler: StackHandler) -> Iterator[None]:
    """Lets Ctrl-C end the writes after a piece. Raised at once, it would leave threads that crash the interpreter while it exits."""

    def stop(*_: object) -> None:
        handler.error = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def open_run(run: epath.Path, arm: str, stage: str) -> Source:
    """Opens the newest checkpoint of a run's stage. Raises UserError if there is none, or if it cannot be read."""
    folder, config = stage_folder(run, arm, stage)
    step = max(checkpoint_steps(folder))
    base = (folder / "checkpoints" / f"step_{step}" / "params").as_posix()
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**29}})

    def opened(param: str) -> tensorstore.TensorStore:
        kvstore = {"driver": "ocdbt", "base": (base if "://" in base else f"file://{base}") + "/", "path": f"{param}/"}
        try:
            return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, context=context).result()
        except ValueError as error:
            raise UserError(f"{base} cannot be read: {first_line(error)}") from error

    stores = {param: opened(param) for param in parameters(config.model)}

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        param = places(config.model)[name].param
        store = stores[param][layer] if is_stacked(param) else stores[param]
        return split(config.model, name, lambda where: store[where].read().result())[index]

    dtypes = {name: stores[place.param].dtype.numpy_dtype for name, place in places(config.model).items()}
    return Source(str(folder), config.model, config.data.seq_len, dtypes, read)

"""`self-instruct` and `evol-instruct` of the command line: training data that models write."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from codellama_jax.alignment import evol_instruct, self_instruct
from codellama_jax.alignment.answers import Answerer, Reply, Request
from codellama_jax.alignment.model_names import is_url, place_of, published
from codellama_jax.alignment.models import Remote, continuing, local
from codellama_jax.alignment.parsing import different
from codellama_jax.benchmarks.samples import make_folder
from codellama_jax.benchmarks.texts import benchmark_texts
from codellama_jax.config import CACHE, MeshConfig
from codellama_jax.data.prepare.readers.conversations import canonical_text, columns_of
from codellama_jax.errors import UserError
from codellama_jax.generation.chat import format_of
from codellama_jax.generation.settings import Sampling
from codellama_jax.system.files import read_state, user_path, write_json
from codellama_jax.system.json_files import Value, read_values
from codellama_jax.tokenizers.chat import ChatFormat, Message
from codellama_jax.weights.commands import existing_folder

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel

SETTINGS = "settings.json"
KEY_VARIABLE = "OPENAI_API_KEY"
MODEL = (
    "The model: the folder of a run, published weights as hf:DIR or gguf:FILE, or the URL of a"
    " server with OpenAI's interface, as http://127.0.0.1:8000/v1#NAME. Its key is read from"
    f" {KEY_VARIABLE}."
)


@dataclass(frozen=True)
class SamplingOptions:
    """How the models that write the data generate."""

    temperature: float = 0.8
    """How tokens are drawn; the paper publishes no number."""
    top_p: float = 0.95
    """Sample from the most likely tokens that hold this share of the probability."""
    max_new_tokens: int = 1024
    """Stop an answer after this many tokens."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The devices of this host along each axis; -1 takes the remaining ones."""

    def sampling(self, seed: int) -> Sampling:
        """Returns how tokens are drawn with a seed. Raises UserError for a number not allowed."""
        return Sampling(self.temperature, 0, self.top_p, self.max_new_tokens, seed)

    def continuer(self, model: str, seed: int) -> Answerer:
        """Returns the function with which a model continues prompts."""
        sampling = self.sampling(seed)
        if is_url(model):
            return _remote(model).answerer(sampling)
        kind, path = published(model)
        if kind:
            existing_folder(path)
        else:
            from codellama_jax.checkpoints.folder import RunFolder

            RunFolder(user_path(model)).find_stage("", "")
        return self._when_needed(model, functools.partial(_continuing, sampling))

    def _when_needed(self, model: str, start: Callable[[TrainedModel], Answerer]) -> Answerer:
        """Returns an answerer that loads a model for its first requests."""
        # A list as a cell that the inner function fills with its first call.
        loaded: list[Answerer] = []

        def answer(requests: Sequence[Request], at_once: int) -> Iterable[tuple[int, Reply]]:
            if not loaded:
                kind, path = published(model)
                loaded.append(start(_loaded(kind, str(user_path(path)), self.mesh)))
            return loaded[0](requests, at_once)

        return answer


@dataclass(frozen=True)
class ModelOptions(SamplingOptions):
    """How the models that write the data answer conversations."""

    chat_format: str = ""
    """llama2, code_llama_70b, pangu_coder2 or template, of models that are not behind a URL; unless
    given, the model's own template or the format that the run was trained with."""

    def answerer(self, model: str, seed: int) -> Answerer:
        """Returns the function with which a model answers. The same model is loaded once."""
        sampling = self.sampling(seed)
        if is_url(model):
            return _remote(model).answerer(sampling)
        # A model that is missing, or has no chat format, is one line at once.
        start = functools.partial(_answering, self._chat_of(model), sampling)
        # Nothing is loaded yet: a folder whose answers are complete never loads its models.
        return self._when_needed(model, start)

    def _chat_of(self, model: str) -> ChatFormat:
        """Returns the chat format of a run or of published weights."""
        kind, path = published(model)
        if not kind:
            from codellama_jax.checkpoints.folder import RunFolder

            folder, stage = RunFolder(user_path(model)).find_stage("", "")
            run_tokenizer = folder.trained().load_tokenizer()
            return format_of(model, self.chat_format, run_tokenizer, stage)
        folder = existing_folder(path)
        from codellama_jax.weights.load import open_published, published_tokenizer

        # Opened for its errors alone: weights that cannot be read are reported before anything is
        # made.
        open_published(folder, kind)
        tokenizer = published_tokenizer(folder)
        if tokenizer is None:
            fix = "import it as a run with `import --tokenizer FILE`, and name the run"
            raise UserError(f"{model} has no tokenizer: {fix}")
        return format_of(model, self.chat_format, tokenizer, None)


def _answering(chat: ChatFormat, sampling: Sampling, model: TrainedModel) -> Answerer:
    return local(model, chat, sampling)


def _continuing(sampling: Sampling, model: TrainedModel) -> Answerer:
    return continuing(model, sampling)


def _remote(model: str) -> Remote:
    """Returns the model behind a URL. Raises UserError for no URL, or if it has no name there."""
    try:
        urllib.parse.urlsplit(model)
    except ValueError as error:
        raise UserError(f"{model} is no URL ({error}): write http://HOST:PORT/v1#NAME") from error
    url, _, name = model.partition("#")
    if not name:
        fix = "add its name there, as http://127.0.0.1:8000/v1#NAME"
        raise UserError(f"{model} does not name a model of the server: {fix}")
    return Remote(url, name, os.environ.get(KEY_VARIABLE, ""))


# Of an absolute path, so that two spellings of one model do not load it twice.
@functools.lru_cache(maxsize=2)
def _loaded(kind: str, path: str, mesh: MeshConfig) -> TrainedModel:
    print(f"starting JAX and loading {path}", file=sys.stderr, flush=True)
    from codellama_jax.checkpoints.loading import keep_compiled, load_run
    from codellama_jax.sharding.mesh import make_mesh
    from codellama_jax.weights.load import load_published

    keep_compiled(CACHE)
    if kind:
        return load_published(user_path(path), kind, make_mesh(mesh))
    return load_run(path, "", "", make_mesh(mesh))


@dataclass(frozen=True)
class SelfInstructCommand:
    """Write questions, tests and solutions with models; keep solutions that pass."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; the same command continues one that was interrupted."""
    model: Annotated[str, tyro.conf.arg(help=MODEL)]
    models: Annotated[ModelOptions, tyro.conf.arg(name="")]
    amounts: Annotated[self_instruct.SelfInstruct, tyro.conf.arg(name="")]
    question_model: str = ""
    """Another model for the questions; the paper takes Llama 2 70B."""
    test_model: str = ""
    """Another model for the tests."""
    workers: int | None = None
    """How many programs run at once; by default one per core."""

    def __call__(self) -> None:
        """Writes the dataset and prints the counts of each step."""
        names = [self.question_model or self.model, self.test_model or self.model, self.model]
        # Before the folder is written: a missing model must not leave an empty dataset behind.
        roles = [self.models.answerer(name, self.amounts.seed) for name in names]
        # These change how fast answers come, not which ones: a run may be continued with others.
        free = ("workers", "models.mesh", "amounts.batch")
        out = opened(self.out, dataclasses.asdict(self), free)
        from codellama_jax.sandbox.executor import Executor

        provenance = dict(zip(("question_model", "test_model", "solution_model"), names))
        with Executor(self.workers) as executor:
            models = self_instruct.Models(*roles)
            counts = self_instruct.make_dataset(models, executor, self.amounts, out, provenance)
        write_json(out / "counts.json", dataclasses.asdict(counts))
        print(f"questions            {counts.questions:,}")
        print(f"without duplicates   {counts.different:,}")
        print(f"with tests           {counts.with_tests:,}")
        print(f"solutions            {counts.solutions:,}")
        print(f"kept                 {counts.kept:,}")
        _print_end(counts.reasons, counts.kept, out, self_instruct.DATASET)


@dataclass(frozen=True)
class EvolInstructCommand:
    """Make tasks harder in rounds, answer them, and drop what is broken or of a benchmark."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; the same command continues one that was interrupted."""
    seeds: str
    """The first tasks: JSON lines of conversations or of Alpaca's layout, as CodeAlpaca's."""
    model: Annotated[str, tyro.conf.arg(help=MODEL)]
    models: Annotated[ModelOptions, tyro.conf.arg(name="")]
    rounds: Annotated[evol_instruct.EvolInstruct, tyro.conf.arg(name="")]
    answer_model: str = ""
    """Another model for the answers."""
    benchmarks: dict[str, str] = field(default_factory=dict)
    """Benchmarks that no kept task may hold, with their files: humaneval FILE mbpp FILE."""

    def __call__(self) -> None:
        """Writes the dataset and prints what became of the tasks."""
        seeds = read_tasks(self.seeds)
        texts = benchmark_texts(self.benchmarks)
        names = [self.model, self.answer_model or self.model]
        writer, solver = [self.models.answerer(name, self.rounds.seed) for name in names]
        # The name of the file is an option already; its content may change under the same name.
        content = hashlib.sha256(json.dumps(seeds).encode()).hexdigest()
        free = ("models.mesh", "rounds.batch")
        out = opened(self.out, dataclasses.asdict(self), free, {"content of --seeds": content})
        if not texts:
            print("note: no --benchmarks, so that leaks are not searched", file=sys.stderr)
        provenance = dict(zip(("task_model", "answer_model"), names))
        report = evol_instruct.make_dataset(
            writer, solver, seeds, texts, self.rounds, out, provenance
        )
        write_json(out / "counts.json", dataclasses.asdict(report))
        print(f"tasks                {report.tasks:,}")
        print(f"kept                 {report.kept:,}")
        _print_end(report.reasons, report.kept, out, evol_instruct.DATASET)


def read_tasks(path: str) -> list[str]:
    """Returns the user's first message of each record of a file, without repeats.

    Raises UserError naming the place of the first record that is no conversation.
    """
    tasks = []
    for place, record in read_values(user_path(path)).values:
        tasks.append(_task(Value(place, record)))
    if not tasks:
        raise UserError(f"--seeds: {path} has no records")
    return different(tasks)


def _task(value: Value) -> str:
    record = value.value if isinstance(value.value, dict) else {}
    names = columns_of(tuple(record))
    text = canonical_text({name: record[name] for name in names}) if names else None
    # The task is the user's first message; the rest of a conversation is left out.
    for message in _messages(text):
        if message.role == "user" and message.content.strip():
            return message.content.strip()
    layouts = "messages, conversations, or instruction with output"
    raise UserError(f"{value.place} is no conversation with a message of the user: {layouts}")


def _messages(text: str | None) -> list[Message]:
    return [Message(**message) for message in json.loads(text or "{}").get("messages", [])]


def opened(
    path: str, given: dict[str, Any], free: Sequence[str], contents: dict[str, str] | None = None
) -> Path:
    """Returns the folder of a command, made if it is missing, and writes the command's options.

    Raises UserError if the folder holds answers that were made with other options, except for those
    named `free`, which change no answer.
    """
    out = Path(user_path(path))
    make_folder(out)
    # As they are after a file was read: tuples are lists then.
    options = json.loads(json.dumps(given))
    options.pop("out")
    for name in free:
        # `options` is nested as the dataclasses are, and a dotted name leads into it.
        *parents, last = name.split(".")
        part = options
        for parent in parents:
            part = part[parent]
        part.pop(last)
    options |= contents or {}
    before = read_state(out / SETTINGS)
    # Without an answer, such as after a wrong URL, the options may still change.
    if before is None or not any(out.glob("*.jsonl")):
        write_json(out / SETTINGS, options)
        return out
    # Options that an older version did not have are compared with None.
    changed = [name for name in options if not _is_same(before.get(name), options[name])]
    if changed:
        fix = "name another folder, or pass the options that it was started with"
        raise UserError(f"{out} was started with another {' and '.join(changed)}: {fix}")
    return out


def _is_same(before: Any, now: Any) -> bool:
    """Returns whether two values of an option are equal, or spell the same path."""
    if isinstance(before, str) and isinstance(now, str) and before and now:
        return before == now or place_of(before) == place_of(now)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return all(_is_same(*pair) for pair in zip(before, now))
    return before == now


def print_reasons(reasons: dict[str, int]) -> None:
    """Prints a line for each reason, with how often it occurred."""
    for reason, count in reasons.items():
        print(f"  {count:,} x {reason}")


def _print_end(reasons: dict[str, int], kept: int, out: Path, dataset: str) -> None:
    print_reasons(reasons)
    if not kept:
        print("nothing was kept: there is no data to train on")
        return
    print(f"train on it with --corpus.others NAME {out / dataset}")

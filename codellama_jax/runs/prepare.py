"""The verb `prepare`: a corpus for training from files, tables, repositories or notebooks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from codellama_jax.checked import Checked, Range, choices_problem, unchecked
from codellama_jax.command_line import cli
from codellama_jax.config import Path
from codellama_jax.data.prepare.policies import POLICIES, Policy
from codellama_jax.data.prepare.readers.base import InputOptions
from codellama_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from codellama_jax.data.prepare.contamination.index import BenchmarkText
    from codellama_jax.tokenizers.base import Tokenizer

DEFAULT_POLICY = "code_llama"
BEAM = "--"  # the options after it are Beam's


@dataclass(frozen=True)
class Prepare(Checked):
    """The options of `prepare`."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """Folders of files, git checkouts, .jsonl, .parquet, datasets on disk, or stdlib."""
    out: Path
    """The folder to make, local or gs://. The same command resumes, and skips what is done."""
    policy: Policy = POLICIES[DEFAULT_POLICY]
    columns: InputOptions = field(default_factory=InputOptions)
    benchmark: tuple[str, ...] = ()
    """Benchmarks to find in the corpus, as NAME=FILE: humaneval=HumanEval.jsonl.gz."""
    tokenizer: tuple[str, ...] = ()
    """Files of tokenizers; the tokens of the corpus are counted with each."""
    validation_fraction: Annotated[float, Range(0, 1, open_most=True)] = 0.005
    """Share of the repositories that are held out; at least one, if there are several."""
    split_by: Literal["repository", "file"] = "repository"
    """What is held out as a unit; `file` where there is only one repository."""
    block_chars: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Split documents between definitions into blocks of at most this length; 0 does not."""
    shard_bytes: Annotated[int, Range(1, 2**32)] = 64 * 2**20
    """Size of a shard's text, which a worker holds in memory twice."""
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes on this machine; ignored where --runner is given."""
    runner: str = ""
    """A runner of Apache Beam, such as DaskRunner or DataflowRunner; '' runs on this machine."""
    beam: tyro.conf.Suppress[tuple[str, ...]] = ()  # the options after `--`

    @classmethod
    def parse(cls, arguments: Sequence[str], program: str, description: str) -> Prepare:
        """Returns the options of a command line; those after `--` are Beam's.

        `--policy NAME` takes a published policy, and `--policy.FIELD` changes one rule of it.
        """
        ours, beam = list(arguments), []
        # Before tyro sees the arguments: it would refuse Beam's options as unknown.
        if BEAM in ours:
            split = ours.index(BEAM)
            ours, beam = ours[:split], ours[split + 1 :]
        # tyro sees `--policy` as a group of fields, not as an option with a value. So its name is
        # taken out first, and the fields of that policy become the defaults of `--policy.FIELD`.
        name, ours = _policy_name(ours)
        names = ", ".join(POLICIES)
        description += (
            f"\n\n--policy NAME starts from the rules of a published corpus ({names});"
            f" the default is {DEFAULT_POLICY}, and the options --policy.FIELD change one rule."
            " Options after `--` are those of Apache Beam's runner."
        )
        with unchecked():  # the folder has no default
            default = cls(inputs=(), out=tyro.MISSING, policy=POLICIES[name])
        parsed = cli(cls, args=ours, default=default, description=description, prog=program)
        return dataclasses.replace(parsed, beam=tuple(beam))

    def __call__(self) -> None:
        """Prepares the corpus and prints where it is."""
        if not self.inputs:
            raise UserError(
                "no INPUT is given: name a folder, a .jsonl or .parquet file, or stdlib"
            )
        # Imported where it is used: --help and mistakes in the options need no Beam and no TFDS.
        from codellama_jax.system.files import user_path
        from codellama_jax.system.locks import one_after_another

        out = user_path(self.out)
        _check_target(out)
        _check_outside(out, self.inputs)
        # Two processes in one folder would write the same parts; the second one finds them
        # complete.
        with one_after_another(out, _print_line):
            self._prepare(out, _print_line)

    def _prepare(self, out: epath.Path, print_line: Callable[[str], None]) -> None:
        from codellama_jax.data.prepare.inputs import parts_of_all
        from codellama_jax.data.prepare.preparation import Preparation, PrepareConfig
        from codellama_jax.data.prepare.runners import Runner
        from codellama_jax.report.data_card import write_card

        runner = Runner(self.runner, self.beam, self.processes)
        # Mistakes in the options are found before the inputs are listed, which may take minutes.
        runner.check()
        benchmarks = self._benchmark_texts()
        tokenizers = self._tokenizers()
        config = PrepareConfig(
            policy=self.policy,
            inputs=self.columns,
            validation_fraction=self.validation_fraction,
            split_by=self.split_by,
            block_characters=self.block_chars,
            shard_bytes=self.shard_bytes,
        )
        print_line(f"listing {', '.join(self.inputs)}")
        parts = parts_of_all(self.inputs, self.columns)
        size = sum(part.size for part in parts)
        print_line(f"{len(parts):,} parts, {size:,} bytes")
        preparation = Preparation(parts, config, out, runner, print_line, benchmarks, tokenizers)
        result = preparation.run()
        # The card belongs to the manifest, so it is written after it, and again on every start.
        write_card(out, result, sys.argv)
        splits = result.manifest["splits"]
        print_line(
            f"prepared {splits['train']['documents']:,} documents for training and"
            f" {splits['validation']['documents']:,} for validation"
        )
        print(f"report: {out / 'report.html'}")
        # A corpus without validation documents is complete, and only `run` cannot use it.
        if splits["validation"]["documents"]:
            print(f"train on it with --corpus.code prepared:{out}")
        else:
            print_line(
                "note: all documents have one repository, and without documents for validation"
                " `run` cannot train on them: pass --split-by file"
                if self.split_by == "repository"
                else "note: `run` cannot train on a corpus of one document: add inputs"
            )

    def _benchmark_texts(self) -> list[BenchmarkText]:
        from codellama_jax.benchmarks.texts import benchmark_texts
        from codellama_jax.system.files import user_path

        paths = {}
        for item in self.benchmark:
            name, equals, path = item.partition("=")
            if not equals or not path:
                raise UserError(
                    f"--benchmark is {item!r}: it must be NAME=FILE, as in"
                    " humaneval=HumanEval.jsonl.gz"
                )
            paths[name] = path
        for name, path in paths.items():
            if not path.startswith("tfds:") and not user_path(path).exists():
                raise UserError(f"--benchmark {name}={path}: there is no file or folder {path}")
        texts = benchmark_texts(paths) if paths else []
        decontamination = self.policy.decontamination
        if decontamination.enabled and not texts:
            _print_line(
                "note: the policy removes benchmarks, but none is given: pass --benchmark NAME=FILE"
            )
        # An error, not a note: the user expects the benchmarks to be removed.
        if texts and not decontamination.enabled:
            raise UserError(
                "--benchmark is given, but the policy looks for no benchmarks: pass"
                " --policy.decontamination.substring or --policy.decontamination.ngrams"
            )
        return texts

    def _tokenizers(self) -> dict[str, Callable[[str], int]]:
        from codellama_jax.system.files import user_path
        from codellama_jax.tokenizers import files

        counters: dict[str, Callable[[str], int]] = {}
        for path in self.tokenizer:
            tokenizer = files.load(user_path(path))
            # By fingerprint, because a plan looks the count up for its own tokenizer, wherever its
            # file is.
            counters[tokenizer.fingerprint] = TokenCounter(tokenizer)
        return counters


@dataclass(frozen=True)
class TokenCounter:
    """Returns the number of tokens of a text; can be sent to workers."""

    tokenizer: Tokenizer

    def __call__(self, text: str) -> int:
        """Returns the number of tokens, without BOS and EOS."""
        return len(self.tokenizer.encode(text))


def _policy_name(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the published policy that `--policy NAME` names, and the other arguments."""
    name, rest = DEFAULT_POLICY, []
    remaining = iter(arguments)
    # Both `--policy NAME` and `--policy=NAME`; the iterator takes the value with its option.
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option != "--policy":
            rest.append(argument)
            continue
        name = value if equals else next(remaining, "")
        if name not in POLICIES:
            raise UserError(f"--policy{choices_problem(name, list(POLICIES))}")
    return name, rest


def _check_target(out: epath.Path) -> None:
    """Raises UserError for a folder that holds something else than a prepared corpus."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out is {str(out)!r}, a file: name a folder")
    from codellama_jax.data.prepare.preparation import is_corpus

    names = [path.name for path in out.iterdir()]
    # The command deletes stages that it no longer needs, so it must never run in another folder.
    if names and not is_corpus(out):
        raise UserError(
            f"--out is {str(out)!r}, which holds other files ({min(names)}): name a new folder"
        )


def _check_outside(out: epath.Path, inputs: Sequence[str]) -> None:
    """Raises UserError if the corpus is in one of its inputs."""
    from codellama_jax.data.prepare.inputs import is_inside
    from codellama_jax.data.prepare.readers.files import BUILTINS
    from codellama_jax.system.files import user_path

    for source in inputs:
        folder = str(user_path(source).resolve())
        if source not in BUILTINS and is_inside(str(out.resolve()), folder):
            raise UserError(
                f"--out is {str(out)!r}, in the input {source!r}, which the next start would read"
                " together with the corpus: name a folder outside of the input"
            )


def _print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

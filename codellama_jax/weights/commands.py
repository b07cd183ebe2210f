"""The verbs `import`, `export` and `check` of the command line.

JAX is imported only inside the commands: it takes seconds, and --help does not need it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from codellama_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

KINDS = ("hf", "meta", "codegeex", "gguf")  # of published weights, the keys of `load.OPEN`
INTEGRITY = "checksums.json, which `check --integrity` verifies; reads every file once more"


def existing_folder(path: str) -> epath.Path:
    """Returns the folder, or the GGUF file, at `path` and prints that it is opened.

    Raises UserError if there is none. Commands call it before they import JAX, so that the error
    appears seconds earlier.
    """
    from codellama_jax.system.files import user_path
    from codellama_jax.weights.inputs import check_file, file_names

    folder = user_path(path)
    if folder.name.endswith(".gguf") and not folder.is_dir():
        check_file(folder)
    else:
        file_names(folder)
    print(f"opening {folder}", file=sys.stderr, flush=True)
    return folder


def _check_prefix(source: str) -> None:
    """Raises UserError for KIND:DIR with an unknown kind, unless a folder has that name."""
    from codellama_jax.system.files import is_bucket, user_path

    prefix, colon, path = source.partition(":")
    # A folder or bucket may have a colon in its name, so that only a bare prefix is refused.
    if not colon or "/" in prefix or is_bucket(source) or user_path(source).exists():
        return
    allowed = ", ".join(f"{kind}:" for kind in KINDS)
    raise UserError(
        f"{source} begins with {prefix}:, which is no kind of weights: begin with one of {allowed}"
        f" or name only {path or 'the folder'}"
    )


@dataclass(frozen=True)
class Import:
    """Import published weights as a run, for complete, infill, export and init=run:RUN."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|FILE.gguf")]
    """A folder of transformers' safetensors, Meta's consolidated.NN.pth or CodeGeeX's *.pt, or a
    GGUF file of llama.cpp; with --base a folder of PEFT's adapters. A prefix hf:, meta:,
    codegeex: or gguf: is allowed, as in init."""
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder to make, local or gs://."""
    tokenizer: str = ""
    """The file of the tokenizer, if DIR has none. A file outside DIR is used only if named here."""
    base: str = ""
    """The run of the base model, where DIR holds adapters that PEFT saved; its tokenizer is
    used."""
    integrity: Annotated[bool, tyro.conf.arg(help=f"Write RUN/{INTEGRITY}.")] = False

    def __call__(self) -> None:
        kind, _, path = self.source.partition(":")
        if kind not in KINDS:
            _check_prefix(self.source)
            kind, path = "", self.source
        if self.base and self.tokenizer:
            fix = "leave it out: with --base, that of the base is used"
            raise UserError(f"--tokenizer is {self.tokenizer}: {fix}")
        # Both folders are checked before JAX is imported, which takes seconds.
        base = existing_folder(self.base) if self.base else None
        folder = existing_folder(path)
        from codellama_jax.system.files import user_path
        from codellama_jax.weights import load, peft_reading, store
        from codellama_jax.weights.rows import added_tokens, trimmed

        if base:
            peft_reading.import_adapter(folder, base, user_path(self.run), self.integrity)
            return
        if folder.is_dir() and peft_reading.is_adapter(folder):
            fix = "name the run of their base model with --base RUN"
            raise UserError(f"{folder} holds adapters of PEFT, not a model: {fix}")
        kind, source = load.open_published(folder, kind)
        tokenizer = load.needed_tokenizer(folder, self.tokenizer)
        # A run holds no padding: its own sharding decides how much it needs.
        source = trimmed(source, tokenizer, added_tokens(folder))
        store.write_run(source, tokenizer, kind, user_path(self.run), self.integrity)


@dataclass(frozen=True)
class Export:
    """Write a trained model for transformers and vLLM, for llama.cpp, or for its authors' code."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run or of one of its stages, local or gs://."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    to: Literal["hf", "meta", "codegeex", "gguf"]
    """The layout: transformers' safetensors, Meta's consolidated.NN.pth, CodeGeeX's *.pt, or the
    model.gguf that llama.cpp runs."""
    arm: str = ""
    """An arm of the run; the default is its first."""
    stage: str = ""
    """A stage of the arm; the default is the last finished one."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Round weights to this type; the default keeps the checkpoint's, float32 after training."""
    type: Literal["", "f32", "f16", "bf16", "q8_0"] = ""
    """The type of matrices in model.gguf; the default keeps the checkpoint's."""
    adapter: bool = False
    """Write only the adapters of a stage with lora, as PEFT loads them on the exported base; the
    default adds them to the weights."""
    ranks: int = 1
    """Meta's model-parallel size, which is the number of files."""
    integrity: Annotated[bool, tyro.conf.arg(help=f"Write DIR/{INTEGRITY}.")] = False

    def __call__(self) -> None:
        # Options that the layout would ignore are refused: the user expects them to have an effect.
        if self.to != "meta" and self.ranks != 1:
            raise UserError(
                f"--ranks is {self.ranks}: only Meta's layout has model-parallel files; pass --to"
                " meta, or leave out --ranks"
            )
        if self.to == "gguf" and self.dtype:
            raise UserError(f"--dtype is {self.dtype}: with --to gguf, pass --type instead")
        if self.to != "gguf" and self.type:
            raise UserError(f"--type is {self.type}: only GGUF has it; pass --to gguf, or --dtype")
        if self.adapter and (self.to != "hf" or self.dtype):
            given = f"--dtype {self.dtype}" if self.dtype else f"--to {self.to}"
            raise UserError(f"--adapter is given with {given}: pass --to hf without --dtype")
        folder = existing_folder(self.run)
        from codellama_jax.checkpoints.folder import StageFolder
        from codellama_jax.system.files import user_path
        from codellama_jax.tokenizers.transformers_files import llama_cpp_options
        from codellama_jax.weights import codegeex, gguf_writing, huggingface, meta, peft, store
        from codellama_jax.weights.layout import cast

        # Before `open_run`, which merges adapters into the weights of their base.
        if self.adapter:
            target = user_path(self.target)
            peft.write_adapter(folder, self.arm, self.stage, target, self.integrity)
            return
        source = store.open_run(folder, self.arm, self.stage)
        # The stage that was opened may refer to another folder, which `source` names.
        tokenizer = StageFolder(user_path(source.name)).load_tokenizer()
        target = user_path(self.target)
        source = cast(source, self.dtype) if self.dtype else source
        if self.to == "meta":
            meta.write(source, tokenizer, target, self.ranks, self.integrity)
            return
        if self.to == "codegeex":
            codegeex.write(source, tokenizer, target, self.integrity)
            return
        if self.to == "gguf":
            gguf_writing.write(source, tokenizer, target, self.type, self.integrity)
            return
        huggingface.write(source, tokenizer, target, self.integrity)
        options = llama_cpp_options(tokenizer, source.model.vocab_size)
        if options:
            print(f"To infill with llama.cpp, start llama-server with {options}")


@dataclass(frozen=True)
class Check:
    """Compare tokens and logits of two models on a text, or files with their checksums."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_RUN")]
    """A run, a GGUF file, or a folder of transformers' or Meta's weights."""
    against: str = ""
    """The reference, also a run or a folder; the default reads DIR_OR_RUN with transformers."""
    text: str = ""
    """A text file; the default is a source file of this project."""
    tokens: int = 512
    """The number of tokens of the text that are read."""
    tokenizer: str = ""
    """The file of the tokenizer of DIR_OR_RUN, if that is a folder of weights without one."""
    integrity: bool = False
    """Only verify checksums.json, which import and export write with --integrity."""

    def __call__(self) -> None:
        from codellama_jax import config
        from codellama_jax.system.files import decode_text, read_file, user_path

        if self.integrity:
            folder = existing_folder(self.folder)
            from codellama_jax.weights import integrity

            print(f"{integrity.verify(folder)} files of {folder} match their checksums")
            return
        # Any text will do for a comparison; this one comes with the program.
        path = user_path(self.text or config.__file__)
        text = decode_text(read_file(path), str(path))
        against = existing_folder(self.against) if self.against else None
        folder = existing_folder(self.folder)
        from codellama_jax.weights import check

        for name, figure in check.compare(folder, against, text, self.tokens, self.tokenizer):
            print(f"{name:26}{figure}")

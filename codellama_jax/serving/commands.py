"""`serve` of the command line: a server of completions for editors, programs and a browser."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from codellama_jax.config import Stage
from codellama_jax.errors import UserError
from codellama_jax.generation.middle import Order, better_order
from codellama_jax.generation.options import Loading, Trained, note
from codellama_jax.generation.settings import CAPACITY
from codellama_jax.system.files import user_path

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.serving.guard import Rules
    from codellama_jax.serving.service import Features
    from codellama_jax.tokenizers.chat import ChatFormat

MODULES = ("starlette", "uvicorn")  # of the extra `serve`
KEY_VARIABLE = "CODELLAMA_JAX_API_KEY"
LEAST_KEY = 16  # characters of an API key
# Of the option --cors. A page from a file has the origin null.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+|null|\*")
DEFAULT_CONTEXT = 2048
LEAST_CONTEXT = 64
DEFAULT_PIECE, LEAST_PIECE = 512, 16
MOST_SLOTS, MOST_QUEUE, MOST_BYTES, MOST_GRACE = 1024, 65_536, 1_000_000_000, 3_600


@dataclass(frozen=True)
class Serve(Loading):
    """Serve completions over HTTP."""

    _: KW_ONLY
    host: str = "127.0.0.1"
    """The address to listen at. Any but this machine's own needs an API key."""
    port: int = 8012
    """The port; 8012 is the default of llama.vim and llama.vscode, 0 takes a free one."""
    api_key: str = ""
    """The key that requests must send. The variable CODELLAMA_JAX_API_KEY keeps it out of lists
    of processes."""
    without_api_key: bool = False
    """Let everybody who reaches the address use the model."""
    cors: tuple[str, ...] = ()
    """Origins of web pages that may send requests, such as http://localhost:3000; * for all."""
    name: str = ""
    """The model's name in answers; the folder's name unless given."""
    slots: int = 8
    """Sequences that are decoded at once, for each of several quantizations."""
    queue: int = 64
    """Sequences that may wait for a slot; requests beyond them are refused with 429."""
    context: int = 0
    """Tokens of a prompt and its new ones, at most, for which memory is reserved. Unless given,
    2,048, or the length that the model was trained on if that is less."""
    warm_up: int = 512
    """Compile for prompts of up to so many tokens before the first request; longer ones compile
    when the first of their length comes."""
    prompt_piece: int = DEFAULT_PIECE
    """Read prompts in pieces of so many tokens; between two pieces the other sequences continue."""
    prefix_cache: bool = True
    """Keep what was read: a prompt that begins as an earlier one reads only the rest."""
    max_body_bytes: int = 4_000_000
    """Larger requests are refused."""
    grace: float = 10.0
    """Seconds that streams may continue after SIGTERM or Ctrl-C."""
    spm: bool = False
    """Fill in in suffix-prefix-middle order. Without --spm and --psm the run's probes decide."""
    psm: bool = False
    """Fill in in prefix-suffix-middle order."""
    healing: bool = False
    """Let the first token also end a token in which the prompt stops, as `enu` for `enumerate`."""
    stop_at_dedent: bool = False
    """/infill: end before a line that is indented less than the cursor's."""
    stop_at_repetition: bool = False
    """/infill: end before a line that repeats the next line after the cursor."""
    chat_format: str = ""
    """As of the verb chat; unless given, the template of an imported model, or the format that the
    run was trained with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("port", self.port, 0, 65_535)
        _check_range("slots", self.slots, 1, MOST_SLOTS)
        _check_range("queue", self.queue, 0, MOST_QUEUE)
        _check_range("max-body-bytes", self.max_body_bytes, 1_000, MOST_BYTES)
        _check_range("grace", self.grace, 0, MOST_GRACE)
        _check_range("warm-up", self.warm_up, 1, CAPACITY)
        _check_range("prompt-piece", self.prompt_piece, LEAST_PIECE, CAPACITY)
        if self.context:
            _check_range("context", self.context, LEAST_CONTEXT, CAPACITY)
        for origin in self.cors:
            # Browsers send origins in this form: any other would never be equal to one.
            if not ORIGIN.fullmatch(origin):
                allowed = "SCHEME://HOST:PORT as http://localhost:3000, without a path, or *"
                raise UserError(f"--cors is {origin[:60]!r}: an origin must be {allowed}")
        if self.spm and self.psm:
            raise UserError("--spm and --psm exclude each other: pass one of them")
        if self.psm and self.healing:
            raise UserError("--healing works in SPM order only: pass --spm instead of --psm")

    def __call__(self) -> None:
        """Serves until SIGTERM or Ctrl-C."""
        for module in MODULES:
            if importlib.util.find_spec(module) is None:
                fix = "pip install -e '.[serve]' in the project's folder"
                raise UserError(f"the verb serve needs {module}, which is not installed: {fix}")
        # Everything that can be refused is checked before the port is opened and JAX starts.
        key = self._key()
        trained = self.find()
        context = self._context(trained.stage)
        chat = self._chat(trained)
        from codellama_jax.serving.server import Address, listen, serve, url_of

        # The port is taken before the other modules are imported: one in use is reported at once.
        listener = listen(Address(self.host, self.port))
        from codellama_jax.serving.app import make_app
        from codellama_jax.serving.service import Service
        from codellama_jax.serving.worker import Sizes, Worker

        features, quantized = self._features(trained, chat), self.quantization.kv_cache
        reading = (self.warm_up, self.prompt_piece, self.prefix_cache)
        sizes = Sizes(self.slots, context, self.queue, *reading)
        if self.prefix_cache and quantized != "none":
            note(f"note: --kv-cache {quantized}: only equal prompts share what was read")
        worker = Worker(self._loader(), sizes)
        app = make_app(Service(features, worker), self._rules(key))
        note(f"serving {features.name} at {url_of(listener)}; Ctrl-C ends it")
        serve(app, worker, listener, self.grace)

    def check_quantization(self) -> None:
        """Raises UserError for several quantizations with a draft model."""
        # A draft model follows the sequences of one engine, and each quantization has its own.
        options = self.quantization
        if options.draft_model and len(options.all()) > 1:
            raise UserError(
                f"--quantize {options.quantize} and --draft-model {options.draft_model} exclude"
                " each other: pass one quantization, or leave --draft-model out"
            )

    def _loader(self) -> Callable[[], list[TrainedModel]]:
        """Returns the function that loads the models."""

        # The worker's thread calls it, while the server already answers with 503.
        def load() -> list[TrainedModel]:
            models = self.load_all()
            note("compiling; /health answers 503 until then")
            return models

        return load

    def _key(self) -> str:
        """Returns the API key, "" for none. Raises UserError where one is needed."""
        # No header can send white space at an end, such as the line end of a file with the key.
        given = self.api_key or os.environ.get(KEY_VARIABLE, "")
        key = given.strip()
        if given and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable()):
            option = "--api-key" if self.api_key else KEY_VARIABLE
            raise UserError(
                f"{option} has {len(key)} characters: it must have at least {LEAST_KEY}, all ASCII"
            )
        if not key and not self.without_api_key and not _is_loopback(self.host):
            raise UserError(
                f"--host is {self.host}, which other machines reach: set --api-key, or pass"
                " --without-api-key to let everybody use the model"
            )
        return key

    def _context(self, stage: Stage) -> int:
        """Returns the context in tokens. Raises UserError for one that the model does not have."""
        length = stage.data.seq_len
        if not self.context:
            return max(LEAST_CONTEXT, min(DEFAULT_CONTEXT, length))
        # A model of learned positions has a hard limit; RoPE has none, hence only a warning.
        stage.model.check_length("--context", self.context)
        if self.context > length:
            trained_on = f"the model was trained on sequences of {length:,} tokens"
            note(f"warning: --context is {self.context:,}; {trained_on}")
        return self.context

    def _chat(self, trained: Trained) -> ChatFormat | None:
        """Returns the format of conversations; None for a model that has none."""
        from codellama_jax.generation.chat import format_of
        from codellama_jax.tokenizers.chat_template import has_template

        if not (self.chat_format or trained.stage.data.chat or has_template(trained.tokenizer)):
            return None
        return format_of(self.run, self.chat_format, trained.tokenizer, trained.stage)

    def _features(self, trained: Trained, chat: ChatFormat | None) -> Features:
        from codellama_jax.serving.service import Features

        order = better_order(trained.folder.read_probes())
        if self.spm or self.psm:
            order = Order(self.spm, "as given")
        elif self.healing:
            order = Order(True, "--healing works in no other")
        tokenizer, quantizations = trained.tokenizer, self.quantization.all()
        # Appended sentinels are the last ids of the vocabulary: a smaller embedding has none of
        # them.
        infills = trained.stage.model.vocab_size >= tokenizer.vocab_size
        if infills:
            note(f"order {'SPM' if order.spm else 'PSM'}: {order.reason}")
        return Features(
            self.name or user_path(self.run).name or "model",
            tokenizer,
            order,
            infills,
            chat,
            self.healing,
            self.stop_at_dedent,
            self.stop_at_repetition,
            {"weights": quantizations[0].weights, "kv_cache": quantizations[0].kv_cache},
            int(time.time()),
            tuple(quantization.weights for quantization in quantizations),
        )

    def _rules(self, key: str) -> Rules:
        from codellama_jax.serving.guard import LOCAL_NAMES, Rules

        hosts: tuple[str, ...] = ()
        # DNS rebinding: a web page can let its own name resolve to 127.0.0.1 and then count as the
        # same origin. The Host header still holds the page's name, which is refused. A key protects
        # as well.
        if not key and _is_loopback(self.host):
            # IPv6 addresses are in brackets in a Host header.
            name = f"[{self.host}]" if ":" in self.host else self.host
            hosts = (*LOCAL_NAMES, name)
        return Rules(key, self.max_body_bytes, hosts, self.cors)


def _is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UserError(f"--{name} is {value:g}: it must be from {least:,} to {most:,}")

"""Everything that decides a run, as plain frozen dataclasses that check their own fields.

An experiment is a few arms; an arm is a chain of stages; a stage is (where its weights come from,
model, data, optimizer, steps). This module imports neither JAX nor any module of the project but
`checked`, `tuning`, `data_stage` and `errors`, so that `launch.py plan` answers at once.

A new field has a default, with which everything is as it was without the field: then older runs
resume, and stages keep their identities (checkpoints/identity.py). Such a default never changes.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from codellama_jax.checked import Checked, FieldError, Pattern, Range, choices_problem
from codellama_jax.checked import differences as differences
from codellama_jax.checked import from_dict as from_dict
from codellama_jax.checked import leaves as leaves
from codellama_jax.checked import to_dict as to_dict
from codellama_jax.data_stage import DataStage, check_data_stages, check_models, check_stage_name
from codellama_jax.errors import UserError
from codellama_jax.tuning import INT32 as INT32
from codellama_jax.tuning import SPARSE as SPARSE
from codellama_jax.tuning import Count as Count
from codellama_jax.tuning import Decay as Decay
from codellama_jax.tuning import Epsilon
from codellama_jax.tuning import LoraConfig as LoraConfig
from codellama_jax.tuning import OptimizerConfig as OptimizerConfig
from codellama_jax.tuning import Share as Share

DEFAULT_FAMILY = "llama"  # of a model whose dict has no tag
CACHE = "~/.cache/codellama_jax"  # prepared documents, tokenizers and compiled programs
# Metadata of a field that never changes the trained parameters, such as how often to log: it may
# change when a run resumes, and stages that differ in nothing else are trained once.
FREE = {"free": True}
LEAST_SHARE = 1e-4  # of the mixture; the wait for a sequence of a rarer source could take hours

PREPARED = "prepared:"  # before the folder of a prepared corpus in the place of a path
# The sources that have separate fields; experiments may add others by name.
SOURCES = ("code", "python", "discussions", "language")
HELD_OUT = "held out"  # the source of `CorpusConfig.held_out`

Positive = Annotated[int, Range(1, INT32)]
Examples = Annotated[int, Range(1, 1_000_000)]
Tokens = Annotated[int, Range(1, 2**24)]
Width = Annotated[int, Range(1, 2**20)]
Weight = Annotated[float, Range(0, 1_000_000)]
Devices = Annotated[int, Range(-1, 2**20)]
HeadCount = Annotated[int, Range(1, 2**14)]
Path = Annotated[str, Pattern(r"[^\0]{1,4096}", "the name of a file or folder")]
OptionalPath = Annotated[str, Pattern(r"[^\0]{0,4096}", "the name of a file, or ''")]
Name = Annotated[str, Pattern(r"[^/\0]{1,200}", "a name of 1 to 200 characters without '/'")]
Init = Annotated[
    str,
    Pattern(
        r"scratch|previous|(run|hf|meta|codegeex|gguf):.+",
        "scratch, previous, run:DIR, run:DIR@STEP, hf:DIR, meta:DIR, codegeex:DIR or gguf:FILE",
    ),
]


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The fields that every decoder-only transformer has.

    The letters beside the fields are those of the tensor names, as in `x_BTD`.

    A model family has a subclass with its own fields, and `family`, the tag by which `from_dict`
    finds it: `to_dict` writes the tag, and leaves out that of DEFAULT_FAMILY, as older runs do.
    """

    family: ClassVar[str] = ""
    families: ClassVar[dict[str, type[ModelConfig]]] = {}  # by tag
    # Fields in which two stages may differ though one starts from the weights of the other.
    adjustable: ClassVar[frozenset[str]] = frozenset(
        ("vocab_size", "compute_dtype", "remat", "attention")
    )

    vocab_size: Annotated[int, Range(1, 2**24)]  # V: vocabulary entries, sentinels included
    d_model: Width  # D
    n_layers: Annotated[int, Range(1, 10_000)]  # L
    n_heads: HeadCount  # N: query heads
    n_kv_heads: HeadCount  # K: key and value heads; N / K query heads share one
    head_dim: Annotated[int, Range(1, 2**12)]  # H
    d_ff: Annotated[int, Range(1, 2**24)]  # F
    norm_eps: Epsilon = 1e-5
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    # Rematerialization: the activations that the backward pass computes again.
    remat: Literal["none", "dots", "full"] = field(default="full", metadata=FREE)
    # An implementation of kernels.attention; '' takes the fastest.
    attention: Literal["", "pallas_tpu", "cudnn", "xla", "reference"] = field(
        default="", metadata=FREE
    )
    tied_embeddings: bool = False  # the output head is the transposed embedding

    def __init_subclass__(cls) -> None:
        ModelConfig.families[cls.family] = cls

    def check_relations(self) -> None:
        """Raises FieldError for head counts that do not divide, and for the base class itself."""
        if type(self) is ModelConfig:
            raise FieldError((), f"ModelConfig is the base of all families: use {_config_names()}")
        # Every key head serves the same number of query heads.
        if self.n_heads % self.n_kv_heads:
            problem = f" is {self.n_kv_heads}: it must divide n_heads, which is {self.n_heads}"
            raise FieldError(("n_kv_heads",), problem)

    def longest_sequence(self) -> int:
        """Returns the most tokens that a sequence may have, 0 for any number."""
        return 0

    def has_dropout(self) -> bool:
        """Returns whether training drops any activations, for which it draws random numbers."""
        return False

    def check_length(self, name: str, tokens: int) -> None:
        """Raises UserError if a sequence, called `name` in the message, has too many tokens."""
        longest = self.longest_sequence()
        if longest and tokens > longest:
            raise UserError(
                f"{name} has {tokens:,} tokens, and the model {longest:,} learned positions:"
                f" it must have at most {longest:,}"
            )

    @classmethod
    def class_for(cls, values: dict) -> tuple[type[ModelConfig], dict]:
        """Returns the class that a dict of `to_dict` describes, and the fields in it.

        Raises FieldError for a tag that no family has.
        """
        if cls is not ModelConfig:
            return cls, values
        _define_families()
        fields = dict(values)
        tag = fields.pop("family", DEFAULT_FAMILY)
        if not isinstance(tag, str) or tag not in cls.families:
            problem = choices_problem(tag, sorted(cls.families))
            raise FieldError(("family",), f"{problem}; import the module that defines another one")
        return cls.families[tag], fields

    def tag(self) -> dict[str, str]:
        """Returns the tag by which `class_for` finds the class; older runs have none of Llama's."""
        return {} if self.family == DEFAULT_FAMILY else {"family": self.family}


def _define_families() -> None:
    """Imports the families of this library, which register themselves; a user imports others."""
    importlib.import_module("codellama_jax.models")


def _config_names() -> str:
    _define_families()
    classes = ModelConfig.families.values()
    return " or ".join(f"{cls.__module__}.{cls.__name__}" for cls in classes)


@dataclass(frozen=True)
class TokenizerConfig(Checked):
    """A published tokenizer, or one trained on the corpus.

    `kind` decides what is trained, and how a vocab.json with its merges.txt splits text. Other
    files hold that themselves.
    """

    # A tokenizer.model, tokenizer.json, vocab.json, GGUF file or folder; "" trains one.
    path: OptionalPath = ""
    pieces: Annotated[int, Range(275, 1_000_000)] = 32_000  # without the infilling sentinels
    # All but the first are byte-level BPE; tokenizers/byte_level.py describes them.
    kind: Literal["sentencepiece", "gpt2", "codex", "codegeex", "starcoder"] = "sentencepiece"


@dataclass(frozen=True)
class CorpusConfig(Checked):
    """Where documents come from: prepared documents, a folder of files, or text of Python's own.

    `prepared:DIR` is a folder that the verb `prepare` wrote; any other path (local or gs://) is a
    folder with the user's files. `stdlib`: the sources of the running interpreter's standard
    library. `topics`: its documentation topics. `descriptions`: the descriptions of installed
    packages.
    """

    code: Path = "stdlib"
    python: Path = "stdlib"
    discussions: Path = "topics"  # natural language about code
    language: Path = "descriptions"  # natural language
    validation_fraction: Decay = 0.05  # of the files; at least one file is held out
    # Read no more files than this from a source; 0 reads all. Prepared corpora are read completely.
    max_files: Count = 0
    # Further sources by name, such as java; files in a folder are read as code.
    others: dict[str, Path] = field(default_factory=dict, hash=False, metadata=SPARSE)
    # Files for the probes alone, all of them, in the place of the held-out part of the stage's main
    # source: such as files that are newer than a published model. '' takes that part.
    held_out: OptionalPath = field(default="", metadata=SPARSE)

    def paths(self) -> dict[str, str]:
        """Returns where the documents of each source come from, by its name."""
        fixed = {name: getattr(self, name) for name in SOURCES}
        # The space keeps users from giving another source this name.
        held_out = {HELD_OUT: self.held_out} if self.held_out else {}
        return fixed | self.others | held_out

    def check_relations(self) -> None:
        """Raises FieldError for a source's name."""
        _check_source_names(self.others)


@dataclass(frozen=True)
class MixtureConfig(Checked):
    """Shares of the training sequences (Code Llama, Table 1), relative to their sum."""

    code: Weight = 0.0
    python: Weight = 0.0
    discussions: Weight = 0.0
    language: Weight = 0.0
    # Of further sources by name; `CorpusConfig.others` has where their documents come from.
    others: dict[str, Weight] = field(default_factory=dict, hash=False, metadata=SPARSE)

    def shares(self) -> dict[str, float]:
        """Returns the share of each source by name: SOURCES, then the others by alphabet.

        The position in this dict is the index of a source in a batch.
        """
        fixed = {name: getattr(self, name) for name in SOURCES}
        # Sorted, so that the order in a file or on the command line changes no batch.
        return fixed | dict(sorted(self.others.items()))

    def check_relations(self) -> None:
        """Raises FieldError for a source's name, and for a share too small to be read in time."""
        _check_source_names(self.others)
        total = sum(self.shares().values())
        for name, share in self.shares().items():
            if 0 < share < LEAST_SHARE * total:
                path = ("others", name) if name in self.others else (name,)
                least = f"it must be 0 or at least {LEAST_SHARE:g} of all shares together"
                raise FieldError(path, f" is {share:g}: {least}, which are {total:g}")


def _check_source_names(others: dict[str, Any], group: str = "others") -> None:
    """Raises FieldError for a name that cannot become an option or means another source."""
    for name in others:
        if name in SOURCES:
            problem = f" has {name!r}, which has a separate field: set {name} itself"
            raise FieldError((group,), problem)
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
            allowed = "a source's name has 1 to 50 lower-case letters, digits and _, a letter first"
            raise FieldError((group,), f" has {name[:60]!r}: {allowed}")


@dataclass(frozen=True)
class InfillingConfig(Checked):
    """How often a document that fits one context is split into prefix, suffix and middle.

    See Code Llama, section 2.3, and for the form `starcoder` data/packed_infilling.py.
    """

    rate: Share = 0.0  # the paper's is 0.9; 0 trains without infilling
    spm: Share = 0.5  # of those, the share in suffix-prefix-middle order
    # starcoder: every document of a packed sequence, also one that is longer than it; prefix and
    # middle are encoded separately in SPM order, and EOS ends the document instead of EOT.
    form: Literal["code_llama", "starcoder"] = field(default="code_llama", metadata=SPARSE)


@dataclass(frozen=True)
class DataConfig(Checked):
    """The stream of packed sequences of one stage."""

    seq_len: Tokens  # T: tokens per sequence
    batch_size: Width  # sequences per step, over all hosts
    mixture: MixtureConfig
    infilling: InfillingConfig = InfillingConfig()
    # Split files between definitions into documents of at most this many characters; 0 does not.
    block_chars: Count = 0
    # CodeGeeX's comment as the first line of a document: `# language: Python`. A document in a
    # language without such a comment has none.
    language_tags: bool = field(default=False, metadata=SPARSE)
    # The training examples: documents, or the documented functions of Python documents, with loss
    # on the code after its docstring (PanGu-Coder) or on the docstring after its code (Codex-D).
    # `pairs` are ranked answers, for the objectives rrtf, rrtf_mean, rrhf and chosen (L_ft alone);
    # `completions` have loss after a prompt.
    examples: Literal[
        "documents", "docstring_to_code", "code_to_docstring", "pairs", "completions"
    ] = field(default="documents", metadata=SPARSE)
    # How conversations and pairs are written as tokens, with loss on the answers only; ''
    # reads conversations as any other document.
    chat: Literal["", "llama2", "code_llama_70b", "pangu_coder2"] = field(
        default="", metadata=SPARSE
    )

    def check_relations(self) -> None:
        """Raises FieldError for fields that exclude each other."""
        if self.examples == "pairs" and not self.chat:
            formats = "llama2, code_llama_70b or pangu_coder2"
            raise FieldError(("chat",), f" is '': pairs need a format, {formats}")
        if self.examples != "documents" and self.infilling.rate:
            problem = f" is {self.infilling.rate:g}: it must be 0 with examples {self.examples}"
            raise FieldError(("infilling", "rate"), problem)
        if self.examples not in ("documents", "pairs") and self.chat:
            problem = f" is {self.chat}: it must be '' with examples {self.examples}"
            raise FieldError(("chat",), problem)
        if self.chat and self.infilling.rate and self.infilling.form == "starcoder":
            # It transforms packed sequences, in which conversations and documents are mixed.
            fix = "use form code_llama or rate 0"
            problem = f" is starcoder with chat {self.chat}, and would rearrange answers: {fix}"
            raise FieldError(("infilling", "form"), problem)


@dataclass(frozen=True)
class MeshConfig(Checked):
    """Devices along each axis; one axis may be -1 and takes the remaining ones."""

    data: Devices = 1
    fsdp: Devices = -1
    context: Devices = 1
    tensor: Devices = 1

    def check_relations(self) -> None:
        """Raises FieldError for a size of 0, and for a second -1."""
        axes = dataclasses.asdict(self)
        for name, size in axes.items():
            if size == 0:
                allowed = "every axis is a positive number, or -1 (the devices that are left)"
                raise FieldError((name,), f" is 0: {allowed}")
        left = [name for name, size in axes.items() if size == -1]
        if len(left) > 1:
            problem = f" is -1, and so is {left[1]}: at most one is -1 (the devices that are left)"
            raise FieldError((left[0],), problem)


@dataclass(frozen=True)
class Stage(Checked):
    """One training run: weights from `init`, then `steps` steps."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    steps: Count  # 0 evaluates, probes and saves the weights of `init` as they are
    # scratch | previous | run:DIR | run:DIR@STEP | hf:DIR | meta:DIR | codegeex:DIR | gguf:FILE
    init: Init = "previous"
    # A batch is split into this many, gradients weighted by tokens.
    micro_batches: Width = field(default=1, metadata=FREE)
    eval_rows: Examples = 32  # validation sequences of seq_len tokens
    eval_every: Positive = 1000
    checkpoint_every: Positive = field(default=1000, metadata=FREE)
    keep_checkpoints: Positive = field(default=3, metadata=FREE)
    log_every: Positive = field(default=10, metadata=FREE)
    # The loss: next_token is the cross-entropy of every token.
    objective: Literal["next_token", "rrtf", "rrtf_mean", "rrhf", "chosen"] = "next_token"
    # Low-rank adapters, which train in place of the weights of `init`; without a rank, none.
    lora: LoraConfig = field(default=LoraConfig(), metadata=SPARSE)

    def check_relations(self) -> None:
        """Raises FieldError for micro-batches, a length or a mixture that cannot be trained on."""
        self.lora.check_init(self.init)
        if self.data.batch_size % self.micro_batches:
            allowed = f"it must divide data.batch_size, which is {self.data.batch_size}"
            raise FieldError(("micro_batches",), f" is {self.micro_batches}: {allowed}")
        longest = self.model.longest_sequence()
        if longest and self.data.seq_len > longest:
            allowed = f"the model has {longest} learned positions (model.n_positions)"
            problem = f" is {self.data.seq_len}: it must be at most {longest}, since {allowed}"
            raise FieldError(("data", "seq_len"), problem)
        is_ranked = self.objective != "next_token"
        if is_ranked != (self.data.examples == "pairs"):
            allowed = "a ranked one or chosen for data.examples pairs, next_token for all others"
            problem = f" is {self.objective} with data.examples {self.data.examples}"
            raise FieldError(("objective",), f"{problem}: it must be {allowed}")
        shares = self.data.mixture.shares()
        # A stage of 0 steps reads no documents.
        if self.steps and not any(shares.values()):
            problem = f" is empty: give one of {', '.join(shares)} a share"
            raise FieldError(("data", "mixture"), problem)


@dataclass(frozen=True)
class Probe(Checked):
    """Base of the measurements that follow a stage: one file in `probes/` for each.

    A probe is a frozen dataclass whose fields are its options. It is declared as
    `class Calls(Probe, name="calls")`, and its file is imported by `probes/__init__.py`. It
    defines `measure` and, for a section in the report, `title` and `show`.
    """

    registry: ClassVar[dict[str, type[Probe]]] = {}  # by name; of the probe files imported so far
    name: ClassVar[str] = ""  # the key in `Experiment.probes` and in probes.json
    title: ClassVar[str] = ""  # the heading of its section in the report; "" has no section

    # After which stages of an arm it runs.
    stages: Literal["all", "last", "none"] = field(default="all", kw_only=True)
    # Earlier steps of such a stage at which it runs, too, for a trend over the length of training:
    # those before the last step at which the stage saves a checkpoint, and keeps it.
    at_steps: tuple[Positive, ...] = field(default=(), kw_only=True, metadata=SPARSE)

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name
        Probe.registry[name] = cls

    def measure(self, subject: Any) -> Any:
        """Returns the measures, ready for JSON. All hosts call it together.

        Raises UserError with the reason where the model or corpus does not allow them: the report
        prints it as a note.

        Args:
          subject: the model and its data, a `probes.subject.Subject`.
        """
        raise NotImplementedError

    def show(self, page: Any, answers: Any) -> None:
        """Adds the measures to a report, below the title.

        Args:
          page: the report, a `report.page.Page`.
          answers: the stages that were measured, in order, each a `report.results.StageResult`
            with the result of `measure`.
        """

    def check_relations(self) -> None:
        """Raises FieldError for an empty tuple: every option but `at_steps` needs a value."""
        for option in dataclasses.fields(self):
            if getattr(self, option.name) == () and option.name != "at_steps":
                allowed = "give at least one value, or stages none to leave the probe out"
                raise FieldError((option.name,), f" is empty: {allowed}")

    def applies(self, is_last: bool) -> bool:
        """Returns whether it runs after a stage, which is the last one of its arm or not."""
        return self.stages == "all" or (self.stages == "last" and is_last)

    def steps_of(self, stage: Stage) -> list[int]:
        """Returns the steps before the last one at which it runs, in rising order."""
        every = stage.checkpoint_every
        return sorted({step for step in self.at_steps if step < stage.steps and step % every == 0})

    @classmethod
    def named(cls, name: str) -> type[Probe]:
        """Returns the class of a probe. Raises FieldError where no imported file declares it."""
        if name not in cls.registry:
            raise FieldError((), f" must be one of the probes {', '.join(cls.registry)}")
        return cls.registry[name]


@dataclass(frozen=True)
class Experiment(Checked):
    """The result of an experiment file's `experiment(scale)`."""

    name: Name
    scale: Annotated[str, Pattern(r"[^/\0]{0,50}", "a name of at most 50 characters without '/'")]
    arms: dict[str, dict[str, Stage]]  # arm -> stage name -> stage, in order
    tokenizer: TokenizerConfig = TokenizerConfig()
    corpus: CorpusConfig = CorpusConfig()
    mesh: MeshConfig = field(default=MeshConfig(), metadata=FREE)
    probes: dict[str, Probe] = field(default_factory=dict, metadata=FREE)  # by `Probe.name`
    seed: Count = 0
    # Number of PRNG seeds; every arm is trained once with each.
    seeds: Annotated[int, Range(1, 1000)] = field(default=1, metadata=FREE)
    # Stages that write a source of documents, by its name; a path in `corpus.others` replaces one.
    data_stages: dict[str, DataStage] = field(default_factory=dict, metadata=SPARSE)

    def check_relations(self) -> None:
        """Raises FieldError for a missing arm or stage, and for a name that makes no path."""
        if not self.arms:
            raise FieldError(("arms",), " is empty: give at least one arm with one stage")
        for arm, stages in self.arms.items():
            # ARM@1 names the folder of an arm's second seed.
            if not re.fullmatch(r"[^/@\0]{1,100}", arm) or arm in (".", ".."):
                allowed = "an arm's name has 1 to 100 characters, none of them '/' or '@'"
                raise FieldError(("arms",), f" has {arm[:60]!r}: {allowed}")
            if not stages:
                raise FieldError(("arms", arm), " has no stage: give at least one")
            for name, stage in stages.items():
                check_stage_name(("arms", arm), name)
                self._check_sources((arm, name), stage)
                for source in self.data_read_by(stage):
                    check_models(source, self.data_stages[source], name, list(stages))
        _check_source_names(self.data_stages, "data_stages")
        check_data_stages(self.data_stages, self.arms)
        for name, probe in self.probes.items():
            if name != probe.name:
                problem = f" is the probe {probe.name}: give it under its own name"
                raise FieldError(("probes", name), problem)

    def data_read_by(self, stage: Stage) -> list[str]:
        """Returns the names of the data stages whose data a stage reads."""
        made = self.data_stages.keys() - self.corpus.others.keys()
        return sorted(name for name in made if stage.data.mixture.others.get(name))

    def _check_sources(self, place: tuple[str, str], stage: Stage) -> None:
        """Raises FieldError for a source with a share in a stage but without documents."""
        for name, share in stage.data.mixture.others.items():
            if share and name not in self.corpus.others and name not in self.data_stages:
                fix = f"pass --corpus.others {name} prepared:DIR, or a folder of files"
                reader = f"the mixture of {'.'.join(place)} reads"
                raise FieldError(("corpus", "others"), f" has no {name!r}, which {reader}: {fix}")

"""What the command line can say about an evaluation. Imports neither JAX nor Flax."""

from __future__ import annotations

from dataclasses import dataclass

from codellama_jax.errors import UserError


@dataclass(frozen=True)
class Options:
    """What a benchmark may be told."""

    data: str = ""
    """A published file or folder (.jsonl, .jsonl.gz, .json); for key_retrieval and perplexity text files. `tfds:NAME` downloads one."""
    shots: int = -1
    """Solved examples in the prompt; -1 takes the paper's number, 0 asks an Instruct model."""
    source: str = ""
    """humaneval_x: translate the solutions of this file instead of generating."""
    all_tasks: bool = False
    """mbpp: all tasks, not only the test split. lcc: all points, not a sample balanced by size."""
    lengths: tuple[int, ...] = (8000, 16000, 24000)
    """key_retrieval, perplexity: context lengths in tokens."""
    positions: tuple[float, ...] = (0.0, 0.2, 0.4)
    """key_retrieval: where the key stands, as a share of the context."""
    examples: int = 64
    """key_retrieval: examples for each length and position. perplexity: files read."""


@dataclass(frozen=True)
class Settings:
    """How answers are drawn: as in the paper unless told otherwise."""

    samples: int = 1
    """Answers to each task; the paper's pass@10 and pass@100 take 200."""
    temperature: float | None = None
    """0 for one sample and the paper's for more, unless given."""
    top_p: float = 0.95
    seed: int = 0
    max_new_tokens: int = 0
    """0 takes the benchmark's."""
    spm: bool = False
    """Infilling: suffix-prefix-middle order instead of prefix-suffix-middle."""
    context_tokens: int = 0
    """Read only so many tokens before the answer; 0 reads the whole prompt."""
    batch_tokens: int = 65_536
    """Tokens of prompts and answers that a model holds at once: what bounds the memory."""

    def __post_init__(self):
        if self.samples < 1 or self.context_tokens < 0 or self.max_new_tokens < 0 or self.batch_tokens < 1:
            raise UserError("--samples and --batch-tokens are at least 1, --max-new-tokens and --context-tokens at least 0")


@dataclass(frozen=True)
class Checking:
    """How programs that a model wrote are run."""

    mode: str = "isolated"
    """isolated: tests and their values out of the program's reach. compatible: one program, as public harnesses do."""
    workers: int | None = None
    """Programs at once; one for each core unless given."""
    allow_unsafe: bool = False
    """Run programs even where this machine cannot isolate them."""
    jars: tuple[str, ...] = ()
    """Java archives that tests need, such as javatuples for multipl_e."""

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers is at least 1, not {self.workers}")

"""Trains a tokenizer once per corpus: the files of a cache, named by all that decides them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import read_file, user_path, write_file
from codellama_jax.system.progress import Say, announced
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.training import MAX_TRAINING_CHARS, sample

Kind = TypeVar("Kind", bound=Tokenizer)


def trained(
    texts: Iterable[str],
    pieces: int,
    options: dict[str, Any],
    ending: str,
    build: Callable[[list[str]], bytes],
    read: Callable[[bytes, str], Kind],
    cache_dir: epath.PathLike,
    print_line: Say,
) -> Kind:
    """Returns a tokenizer trained on `texts`, in any order, or a sample of them.

    Args:
      texts: documents; above MAX_TRAINING_CHARS characters a sample that depends on them only.
      pieces: vocabulary entries, for the line of progress.
      options: all else that decides the result, ready for JSON.
      ending: of the name of the cached file.
      build: returns the content of the file, trained on texts.
      read: returns the tokenizer of the content of a file and its name.
      cache_dir: the folder of the cached file, local or gs://.
      print_line: prints a line of progress.
    """
    with announced(print_line, "tokenizer: reading the corpus"):
        sampled = sample(texts, MAX_TRAINING_CHARS)
    # Hashes of the sampled texts, not the paths of the corpus: the same texts give the same
    # tokenizer wherever they are stored.
    recipe = {"texts": [digest for digest, _ in sampled], **options}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    path = user_path(cache_dir) / f"tokenizer-{key[:20]}.{ending}"
    if path.exists():
        with contextlib.suppress(UserError):  # a damaged file is trained again
            return read(read_file(path), str(path))
    kept = [text for _, text in sampled]
    characters = f"{sum(map(len, kept)):,} characters"
    with announced(print_line, f"tokenizer: training {pieces:,} pieces on {characters}"):
        model = build(kept)
    # Written at once after training, so that an interrupted start leaves no half of a file.
    write_file(path, model)
    print_line(f"tokenizer: {pieces:,} pieces from {characters} of {len(kept):,} documents")
    return read(model, str(path))

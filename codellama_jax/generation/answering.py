"""Answers of a model to conversations, in its chat format."""

from __future__ import annotations

from collections.abc import Sequence

from codellama_jax.generation.sampler import Sampling
from codellama_jax.generation.text import Rows, generate_text
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers.chat import ChatFormat


def generate_answers(
    model: TrainedModel,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    numbers: Sequence[int],
    ranks: Sequence[int] | None = None,
) -> list[str]:
    """Returns the answer after each prompt, without white space at its ends.

    Args:
      model: the model.
      chat: the format, whose ids end an answer.
      prompts: ids, as the format writes them.
      sampling: how tokens are drawn.
      numbers: of the sequences; each one's PRNG key depends on the seed and its number.
      ranks: of the texts of a beam search, as in `Rows`.
    """

    def decode(_: int, ids: list[int]) -> str:
        return model.tokenizer.decode(ids, leading_space=False)

    def truncate(_: int, text: str) -> str:
        return text

    rows = Rows(truncate, numbers, ranks)
    stop_ids = chat.stop_ids(model.tokenizer)
    generated = generate_text(model, prompts, decode, sampling, stop_ids, rows=rows)
    return [answer.text.strip() for answer in generated]

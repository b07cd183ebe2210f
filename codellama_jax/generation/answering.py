"""Answers of a model to conversations, in its chat format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import Rows, generate_text_each
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers.chat import ChatFormat


def generate_answers(
    model: TrainedModel,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    numbers: Sequence[int],
    slots: int,
    ranks: Sequence[int] | None = None,
) -> Iterator[tuple[int, str]]:
    """Yields the index of each prompt and the answer, without white space at its ends, as it ends.

    Args:
      model: the model.
      chat: the format, whose ids end an answer.
      prompts: ids, as the format writes them.
      sampling: how tokens are drawn.
      numbers: of the sequences; each one's PRNG key depends on the seed and its number.
      slots: answers that are generated at once.
      ranks: of the texts of a beam search, as in `Rows`.
    """

    def decode(_: int, ids: list[int]) -> str:
        return model.tokenizer.decode(ids, leading_space=False)

    # Only the stop ids end an answer, so no text is ever truncated; `rows` is used for its numbers
    # and ranks.
    def truncate(_: int, text: str) -> str:
        return text

    rows = Rows(truncate, numbers, ranks)
    stop_ids = chat.stop_ids(model.tokenizer)
    arguments = (model, prompts, decode, sampling, stop_ids)
    for index, answer in generate_text_each(*arguments, rows=rows, slots=slots):
        yield index, answer.text.strip()

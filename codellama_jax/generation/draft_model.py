"""Drafts by a smaller model of the same tokenizer, and the choice of a drafter by the options.

The draft model continues the text of every sequence in a separate engine, whose cache holds the
tokens read and drafted so far (`prefixes.py`), so it reads only the tokens that the model drew
instead of a draft's, and the last one. It draws with the sequence's seed and number: at each
position both models invert their distribution at the same uniform number, so that they agree more
often than independent draws would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.generation.batches import check_prompt
from codellama_jax.generation.drafts import Drafter, PromptLookup
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.requests import Request, Running
from codellama_jax.generation.settings import QuantizationOptions, check_draft_tokenizer
from codellama_jax.models.trained import TrainedModel


class DraftModel(Drafter):
    """Drafts what a model would draw next."""

    none_because = "every text was too long for the draft model"

    def __init__(self, model: TrainedModel, length: int, vocab: int | None = None) -> None:
        """Drafts `length` tokens at once.

        Args:
          model: the draft model, on the mesh of the model that checks its drafts.
          length: tokens of a draft.
          vocab: ids from here on, which pad the vocabulary, are never drafted.
        """
        super().__init__(length)
        self._model, self._vocab = model, vocab
        self._engine: Engine | None = None

    def drafts(self, sequences: Sequence[Running], slots: int) -> list[np.ndarray]:
        """Returns the drafts of sequences; see `Drafter.drafts`."""
        drafts = [np.zeros(0, np.int32) for _ in sequences]
        requests: dict[int, Request] = {}
        for index, sequence in enumerate(sequences):
            request = self._request(sequence)
            if request is not None:
                requests[index] = request
        if not requests:
            return drafts
        # Created at the first draft, because only then is the number of slots known; kept, because
        # its cache holds what has been read of every text.
        if self._engine is None or self._engine.slots < slots:
            self._engine = Engine(self._model, slots, self._vocab)
        # An error or an interrupt leaves requests in the engine, so the next call makes a new one.
        engine, self._engine = self._engine, None
        for index, ids in zip(requests, engine.run(list(requests.values()))):
            drafts[index] = np.asarray(ids, np.int32)
        self._engine = engine
        return drafts

    def _request(self, sequence: Running) -> Request | None:
        """Returns the request for a draft; None for a text that is too long for the draft model."""
        # The draft continues the prompt and all new ids. Most of them are in the draft engine's
        # cache.
        text, request = sequence.text().tolist(), sequence.request
        try:
            check_prompt(self._model.config, text, self.length, "the text")
        except UserError:
            return None
        # A stop id is drafted like any other token: the model that checks it ends the sequence.
        # Same seed, number and temperature: both models then draw with the same uniform numbers.
        sampling = dataclasses.replace(request.sampling, max_new_tokens=self.length)
        return Request(text, sampling, number=request.number)


def with_drafts(
    model: TrainedModel, options: QuantizationOptions, load: Callable[[str], TrainedModel]
) -> TrainedModel:
    """Returns the model, with a drafter where the options ask for one.

    Raises UserError for a draft model of another tokenizer.

    Args:
      model: the model.
      options: of the command.
      load: loads the draft model, given the folder of its run.
    """
    if not options.speculate:
        return model
    if not options.draft_model:
        return dataclasses.replace(model, drafter=PromptLookup(options.speculate))
    draft = load(options.draft_model)
    check_draft_tokenizer(options.draft_model, draft.tokenizer, model.name, model.tokenizer)
    drafter = DraftModel(draft, options.speculate, draft.tokenizer.vocab_size)
    return dataclasses.replace(model, drafter=drafter)

"""Smoothed sentence BLEU as CodeXGLUE measures docstrings (Lin and Och 2004).

N-gram orders 1 to 4; counts above order 1 are smoothed by adding 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter

ORDERS = 4


def words(text: str) -> list[str]:
    """Splits a text into lower-case words and single punctuation marks."""
    return re.findall(r"\w+|[^\s\w]", text.lower())


def smoothed_bleu(written: str, reference: str) -> float:
    """Returns BLEU from 0 to 1 of one text against one reference."""
    candidate = words(written)
    target = words(reference)
    log_precision = 0.0
    for order in range(1, ORDERS + 1):
        candidate_grams = _n_grams(candidate, order)
        # The intersection takes the smaller count of each n-gram, so that repeating one does not
        # help.
        matches = (candidate_grams & _n_grams(target, order)).total()
        count = candidate_grams.total()
        # Without smoothing, a short text without a matching 4-gram would score 0.
        smoothing = 1 if order > 1 else 0
        if not matches + smoothing:
            return 0.0
        log_precision += math.log((matches + smoothing) / (count + smoothing))
    # The published script adds 1 to both lengths of the brevity penalty.
    brevity = min(0.0, 1 - (len(target) + 1) / (len(candidate) + 1))
    return math.exp(log_precision / ORDERS + brevity)


def _n_grams(text: list[str], order: int) -> Counter[tuple[str, ...]]:
    """Returns how often each sequence of `order` words occurs."""
    shifted = [text[i:] for i in range(order)]
    return Counter(zip(*shifted))

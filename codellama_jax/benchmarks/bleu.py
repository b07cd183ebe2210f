"""Smoothed sentence BLEU as CodeXGLUE measures docstrings (Lin and Och 2004): orders 1 to 4, one added to the counts above order 1."""

from __future__ import annotations

import math
import re
from collections import Counter

ORDERS = 4


def words(text: str) -> list[str]:
    """Splits a text into lower-case words and single marks."""
    return re.findall(r"\w+|[^\s\w]", text.lower())


def smoothed_bleu(written: str, reference: str) -> float:
    """Returns BLEU from 0 to 1 of one text against one reference; lengths in the brevity penalty count one more word."""
    a, b = words(written), words(reference)
    total = 0.0
    for order in range(1, ORDERS + 1):
        grams = [Counter(zip(*(text[i:] for i in range(order)))) for text in (a, b)]
        matches, count, added = (grams[0] & grams[1]).total(), grams[0].total(), int(order > 1)
        if not matches + added:
            return 0.0
        total += math.log((matches + added) / (count + added))
    return math.exp(total / ORDERS + min(0.0, 1 - (len(b) + 1) / (len(a) + 1)))

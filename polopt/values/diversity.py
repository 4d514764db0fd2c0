"""How much several texts for one prompt differ, from their tokens: 0 where all say the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Text = Sequence[Hashable]


def grams(text: Text, n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of `n` tokens is in a text."""
    return Counter(tuple(text[at : at + n]) for at in range(len(text) - n + 1))


def distinct(texts: Sequence[Text], n: int = 3) -> float:
    """Different runs of `n` tokens over all of them, in all texts together; 0 where there is none. Li et al. 2016."""
    counts = sum((grams(text, n) for text in texts), Counter())
    return len(counts) / counts.total() if counts else 0.0


def bleu(text: Text, references: Sequence[Text], longest: int = 3, smoothing: float = 0.1) -> float:
    """BLEU of a text with equal weights of 1- to `longest`-grams (Papineni et al. 2002); at least one reference.

    A precision without a match counts `smoothing` of one (method 1 of Chen and Cherry, 2014); where no single token
    matches BLEU is 0.
    """
    total = 0.0
    for n in range(1, longest + 1):
        own, most = grams(text, n), Counter[tuple[Hashable, ...]]()
        for reference in references:
            most |= grams(reference, n)
        matches = (own & most).total()
        if n == 1 and not matches:
            return 0.0
        total += math.log((matches or smoothing) / max(own.total(), 1)) / longest
    closest = min((len(reference) for reference in references), key=lambda size: (abs(size - len(text)), size))
    return math.exp(total + min(0.0, 1 - closest / len(text)))


def unlike(texts: Sequence[Text]) -> float:
    """1 - self-BLEU, the mean BLEU of every text against all the others (Zhu et al. 2018); 0 for fewer than two."""
    if len(texts) < 2:
        return 0.0
    return 1 - sum(bleu(text, [*texts[:at], *texts[at + 1 :]]) for at, text in enumerate(texts)) / len(texts)

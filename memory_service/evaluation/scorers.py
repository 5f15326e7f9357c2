"""Scorer: how good one answer is."""

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, expected: str) -> float:
    """SQuAD token F1 between 0 and 1 (Rajpurkar et al. 2016), the paper's metric."""
    given, wanted = normalise(answer).split(), normalise(expected).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def exact_match(answer: str, expected: str) -> float:
    """1.0 where the normalised texts are equal."""
    return float(normalise(answer) == normalise(expected))


def value_recall(answer: str, value: str) -> float:
    """1.0 where the answer holds the value as whole words."""
    wanted = normalise(value)
    return float(bool(wanted) and f" {wanted} " in f" {normalise(answer)} ")


def rouge_l_recall(answer: str, expected: str) -> float:
    """Share of the expected words that stand in the answer in their order (Lin 2004).

    The longest common subsequence of the normalised words over the expected ones: what it misses
    is not held against an answer for being long, as in Doc-to-LoRA's comparison.
    """
    given, wanted = normalise(answer).split(), normalise(expected).split()
    if not wanted:
        return float(not given)
    longest = [0] * (len(given) + 1)
    for word in wanted:
        before = 0  # of the row above, one column to the left
        for column, other in enumerate(given, start=1):
            above = longest[column]
            longest[column] = before + 1 if word == other else max(above, longest[column - 1])
            before = above
    return longest[-1] / len(wanted)

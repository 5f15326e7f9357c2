"""Locality: what an adapter changes in conversations that have nothing to do with its person.

Perplexity of other people's chats with a person's adapter, against the base model's own.
"""

import importlib.util
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from memory_service.domain.messages import Message
from memory_service.errors import ConfigurationError, InvalidInput
from memory_service.evaluation.methods import memorise
from memory_service.evaluation.samples import Asked, Sample
from memory_service.inference.encoder import LocalEncoder
from memory_service.inference.local import LocalBackend

DATASET = "chitchat_dataset"
"""Real student chats (MIT), https://pypi.org/project/chitchat-dataset."""

LONGEST_WORDS = 60
"""Longer messages are left out: they are pasted texts."""


@dataclass(frozen=True)
class Drift:
    """Summed negative log-likelihood (nats) of replies to one person's adapter and to none.

    `exchanges` are what was asked and replied.
    """

    sample: str
    tokens: int
    on_nats: float
    off_nats: float
    exchanges: Sequence[tuple[str, str]] = ()


def read_exchanges() -> list[Asked]:
    """Messages of the chitchat dataset with the replies that they got.

    Raises:
        ConfigurationError: the package is not installed.
    """
    found = importlib.util.find_spec(DATASET)
    if found is None or found.origin is None:
        raise ConfigurationError(
            "locality data",
            "the package chitchat-dataset is not installed",
            "pip install 'memory-service[eval]'",
        )
    content = json.loads((Path(found.origin).parent / "dataset.json").read_text(encoding="utf-8"))
    exchanges = []
    for name in sorted(content):
        said = [" ".join(part["text"] for part in turn) for turn in content[name]["messages"]]
        for asked, reply in pairwise(said):
            if 3 <= len(reply.split()) <= LONGEST_WORDS and 0 < len(asked.split()) <= LONGEST_WORDS:
                exchanges.append(Asked(asked, reply))
    return exchanges


def locality_samples(
    people: Sequence[Sample], exchanges: Sequence[Asked], each: int, seed: int
) -> list[Sample]:
    """The people's memories, asked `each` exchanges of others instead of their own facts.

    Raises:
        InvalidInput: there are fewer exchanges than that.
    """
    if len(exchanges) < each:
        raise InvalidInput("exchanges", len(exchanges), f"must be at least {each}")
    rng = random.Random(f"locality-{seed}")  # noqa: S311  # not security
    return [
        Sample(person.id, person.turns, person.swap_turns, rng.sample(exchanges, each))
        for person in people
    ]


def measure_drift(
    samples: Sequence[Sample],
    encoder: LocalEncoder,
    backend: LocalBackend,
    report: Callable[[int, int], None],
) -> Iterator[Drift]:
    """Yield every person's drift; `report` gets people done and people to do."""
    for number, sample in enumerate(samples, start=1):
        readouts = memorise(encoder, sample.turns)
        prompts = [[Message("user", one.question)] for one in sample.asked]
        replies = [one.answer for one in sample.asked]
        counts = [encoder.count_tokens(reply) for reply in replies]
        on = backend.log_likelihoods(prompts, replies, [readouts] * len(prompts))
        off = backend.log_likelihoods(prompts, replies, [None] * len(prompts))
        yield Drift(
            sample=sample.id,
            tokens=sum(counts),
            on_nats=-math.fsum(one * count for one, count in zip(on, counts, strict=True)),
            off_nats=-math.fsum(one * count for one, count in zip(off, counts, strict=True)),
            exchanges=[(one.question, one.answer) for one in sample.asked],
        )
        report(number, len(samples))

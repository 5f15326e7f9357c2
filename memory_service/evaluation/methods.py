"""Method: how a sample's questions are answered. All share base model and decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from memory_service.domain.chunks import in_order_said
from memory_service.domain.turns import Role, Turn
from memory_service.evaluation.samples import Sample
from memory_service.generator.config import Encoding
from memory_service.generator.state import add
from memory_service.services.ports import Encoder, Message


@dataclass(frozen=True)
class Asking:
    """What a method puts before the model: prompts in the order of the questions, one adapter."""

    prompts: list[list[Message]]
    readouts: Tensor | None


Method = Callable[[Sample, Encoder], Asking]
"""The name of a method in reports is its function's name."""


def none(sample: Sample, encoder: Encoder) -> Asking:
    """The base model alone."""
    return Asking(_questions(sample), None)


def own(sample: Sample, encoder: Encoder) -> Asking:
    """The person's own adapter."""
    return Asking(_questions(sample), memorise(encoder, sample.turns))


def swap(sample: Sample, encoder: Encoder) -> Asking:
    """Another person's adapter: what helps here is the style of answers, not memory."""
    return Asking(_questions(sample), memorise(encoder, sample.swap_turns))


def history(sample: Sample, encoder: Encoder) -> Asking:
    """The whole history as text in the prompt."""
    return Asking([history_prompt(sample.turns, asked.question) for asked in sample.asked], None)


METHODS: dict[str, Method] = {method.__name__: method for method in (none, own, swap, history)}


def memorise(encoder: Encoder, turns: Sequence[Turn]) -> Tensor:
    """The adapter of turns, without a database: what `services.remember` stores."""
    state = encoder.empty_state()
    by_session = sorted(turns, key=lambda turn: turn.session)
    chunks = [
        chunk
        for _, session in groupby(by_session, key=lambda turn: turn.session)
        for chunk in encoder.chunk(list(session))
    ]
    sequential = encoder.fingerprint.encoding == Encoding.SEQUENTIAL
    for chunk in in_order_said(chunks, turns):
        state = add(state, encoder.encode(chunk, state if sequential else None))
    return encoder.read_out(state)


def history_prompt(turns: Sequence[Turn], question: str) -> list[Message]:
    """Everything said so far as a transcript in the system message, then the question."""
    speakers = {Role.USER: "User", Role.ASSISTANT: "Assistant"}
    said = "\n".join(
        f"{speakers[turn.role]}: {turn.text}" for turn in sorted(turns, key=lambda t: t.order)
    )
    instruction = (
        "You are the assistant in the conversation below. Answer the user's question about it in "
        "one short sentence.\n\n"
    )
    return [Message("system", instruction + said), Message("user", question)]


def _questions(sample: Sample) -> list[list[Message]]:
    return [[Message("user", asked.question)] for asked in sample.asked]

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
    """The whole history in the prompt, in the format that did best on other data."""
    return Asking([BEST_PROMPT(sample.turns, asked.question) for asked in sample.asked], None)


def history_and_swap(sample: Sample, encoder: Encoder) -> Asking:
    """The whole history in the prompt under another person's adapter.

    An adapter also teaches the style of answers; this is the history with that help.
    """
    return Asking(history(sample, encoder).prompts, memorise(encoder, sample.swap_turns))


def history_transcript(sample: Sample, encoder: Encoder) -> Asking:
    """The history as a transcript in the system message."""
    return Asking([transcript_prompt(sample.turns, one.question) for one in sample.asked], None)


def history_chat(sample: Sample, encoder: Encoder) -> Asking:
    """The history as the chat that it was."""
    return Asking([chat_prompt(sample.turns, one.question) for one in sample.asked], None)


def history_notes(sample: Sample, encoder: Encoder) -> Asking:
    """The history in the user's message, before the question."""
    return Asking([notes_prompt(sample.turns, one.question) for one in sample.asked], None)


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


Prompt = Callable[[Sequence[Turn], str], list[Message]]
"""Everything said so far and a question -> messages."""


def transcript_prompt(turns: Sequence[Turn], question: str) -> list[Message]:
    """A transcript in the system message, then the question."""
    instruction = (
        "You are the assistant in the conversation below. Answer the user's question about it in "
        "one short sentence.\n\n"
    )
    return [Message("system", instruction + _transcript(turns)), Message("user", question)]


def chat_prompt(turns: Sequence[Turn], question: str) -> list[Message]:
    """The conversation as messages, then the question; neighbours of one role are joined."""
    messages: list[Message] = []
    for role, said in groupby(sorted(turns, key=lambda t: t.order), key=lambda t: t.role):
        messages.append(Message(role.value, "\n".join(turn.text for turn in said)))
    if messages and messages[-1].role == Role.USER.value:
        last = messages.pop()
        question = f"{last.content}\n{question}"
    return [*messages, Message("user", question)]


def notes_prompt(turns: Sequence[Turn], question: str) -> list[Message]:
    """A transcript, the question and how to answer it, all in the user's message."""
    content = (
        f"Here is what we said before:\n\n{_transcript(turns)}\n\n"
        f"Answer with a short phrase only, from what we said. {question}"
    )
    return [Message("user", content)]


BEST_PROMPT: Prompt = transcript_prompt
"""Not chosen by measurement yet; `history_chat` and `history_notes` are there to compare."""

METHODS: dict[str, Method] = {
    "none": none,
    "own": own,
    "swap": swap,
    "history": history,
    "history+swap": history_and_swap,
    "history_transcript": history_transcript,
    "history_chat": history_chat,
    "history_notes": history_notes,
}


def _transcript(turns: Sequence[Turn]) -> str:
    speakers = {Role.USER: "User", Role.ASSISTANT: "Assistant"}
    ordered = sorted(turns, key=lambda turn: turn.order)
    return "\n".join(f"{speakers[turn.role]}: {turn.text}" for turn in ordered)


def _questions(sample: Sample) -> list[list[Message]]:
    return [[Message("user", asked.question)] for asked in sample.asked]

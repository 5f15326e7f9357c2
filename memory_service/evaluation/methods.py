"""Method: what is kept of a person, and what is put before the model with a question.

All methods share base model and decoding. A method writes once, from a person's turns; what it
kept then makes a prompt of every question.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor

from memory_service.domain.chunks import SPEAKERS, in_order_said
from memory_service.domain.turns import Role, Turn
from memory_service.evaluation.retrieval import Bm25Index, EmbeddingIndex, Index
from memory_service.evaluation.samples import Sample
from memory_service.generator.config import Encoding
from memory_service.generator.state import add
from memory_service.services.ports import Encoder, Message

TURNS_SHOWN = 8
"""Turns that `last_k` and retrieval put into the prompt."""

Fits = Callable[[list[Message]], bool]
"""Whether a prompt and an answer are within the base model's context."""


@dataclass(frozen=True)
class Kept:
    """What a method keeps of a person; `prompt` makes the messages for a question.

    `size_bytes` is what must be at hand to answer. `encoded_tokens` are of the chunks that the base
    model read to write it, `index_flops` and `question_flops` what a search costs besides.
    """

    prompt: Callable[[str, Fits], list[Message]]
    size_bytes: int = 0
    readouts: Tensor | None = None
    encoded_tokens: tuple[int, ...] = ()
    index_flops: int = 0
    question_flops: Callable[[str], int] = lambda question: 0


Method = Callable[[Sample, Encoder], Kept]


def keep_nothing() -> Kept:
    """No memory: the question alone."""
    return Kept(lambda question, fits: [Message("user", question)])


def keep_adapter(readouts: Tensor, encoded_tokens: tuple[int, ...] = ()) -> Kept:
    """An adapter, and the question alone."""
    return replace(
        keep_nothing(),
        size_bytes=readouts.numel() * readouts.element_size(),
        readouts=readouts,
        encoded_tokens=encoded_tokens,
    )


def keep_turns(turns: Sequence[Turn], form: "Prompt | None" = None) -> Kept:
    """The whole history in the prompt; where it is too long, without its oldest turns."""
    form = form or BEST_PROMPT
    ordered = sorted(turns, key=lambda turn: turn.order)
    return Kept(
        lambda question, fits: _newest_that_fit(ordered, question, form, fits),
        size_bytes=_text_bytes(ordered),
    )


def keep_index(turns: Sequence[Turn], index: Index) -> Kept:
    """Turns as text; those that an index finds for a question are shown, in the order said."""

    def prompt(question: str, fits: Fits) -> list[Message]:
        found = sorted(index.best(question, TURNS_SHOWN), key=lambda turn: turn.order)
        return _newest_that_fit(found, question, BEST_PROMPT, fits)

    return Kept(
        prompt,
        size_bytes=_text_bytes(turns) + index.size_bytes,
        index_flops=index.flops,
        question_flops=index.question_flops,
    )


def none(sample: Sample, encoder: Encoder) -> Kept:
    """The base model alone."""
    return keep_nothing()


def own(sample: Sample, encoder: Encoder) -> Kept:
    """The person's own adapter."""
    return _remembered(encoder, sample.turns)


def swap(sample: Sample, encoder: Encoder) -> Kept:
    """Another person's adapter: what helps here is the style of answers, not memory."""
    return _remembered(encoder, sample.swap_turns)


def history(sample: Sample, encoder: Encoder) -> Kept:
    """The whole history in the prompt, in the format that did best on other data."""
    return keep_turns(sample.turns)


def history_and_swap(sample: Sample, encoder: Encoder) -> Kept:
    """The whole history in the prompt under another person's adapter.

    An adapter also teaches the style of answers; this is the history with that help.
    """
    return _both(swap(sample, encoder), history(sample, encoder))


def history_transcript(sample: Sample, encoder: Encoder) -> Kept:
    """The history as a transcript in the system message."""
    return keep_turns(sample.turns, transcript_prompt)


def history_chat(sample: Sample, encoder: Encoder) -> Kept:
    """The history as the chat that it was."""
    return keep_turns(sample.turns, chat_prompt)


def history_notes(sample: Sample, encoder: Encoder) -> Kept:
    """The history in the user's message, before the question."""
    return keep_turns(sample.turns, notes_prompt)


def last_k(sample: Sample, encoder: Encoder) -> Kept:
    """The last turns in the prompt: what a chat window does."""
    ordered = sorted(sample.turns, key=lambda turn: turn.order)
    return keep_turns(ordered[-TURNS_SHOWN:])


def bm25(sample: Sample, encoder: Encoder) -> Kept:
    """The turns that share the question's words, in the prompt."""
    return keep_index(sample.turns, Bm25Index(sample.turns))


def embedding(sample: Sample, encoder: Encoder) -> Kept:
    """The turns whose sentence embedding is nearest to the question's, in the prompt."""
    return keep_index(sample.turns, EmbeddingIndex(sample.turns))


def own_and_bm25(sample: Sample, encoder: Encoder) -> Kept:
    """The person's own adapter and the turns that BM25 finds."""
    return _both(own(sample, encoder), bm25(sample, encoder))


def memorise(encoder: Encoder, turns: Sequence[Turn]) -> Tensor:
    """The adapter of turns, without a database: what `services.remember` stores."""
    return _encoded(encoder, turns)[0]


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
"""The best of three on other data: `docs/decisions/0010-the-history-is-a-transcript.md`."""

METHODS: Mapping[str, Method] = {
    "none": none,
    "own": own,
    "swap": swap,
    "history": history,
    "history+swap": history_and_swap,
    "history_transcript": history_transcript,
    "history_chat": history_chat,
    "history_notes": history_notes,
    "last_k": last_k,
    "bm25": bm25,
    "embedding": embedding,
    "own+bm25": own_and_bm25,
}


def _remembered(encoder: Encoder, turns: Sequence[Turn]) -> Kept:
    return keep_adapter(*_encoded(encoder, turns))


def _encoded(encoder: Encoder, turns: Sequence[Turn]) -> tuple[Tensor, tuple[int, ...]]:
    """The adapter, and the tokens of the chunks it was made from."""
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
    tokens = tuple(sum(encoder.count_tokens(text) for text in chunk.texts) for chunk in chunks)
    return encoder.read_out(state), tokens


def _both(adapter: Kept, text: Kept) -> Kept:
    return replace(
        text,
        size_bytes=adapter.size_bytes + text.size_bytes,
        readouts=adapter.readouts,
        encoded_tokens=adapter.encoded_tokens,
    )


def _newest_that_fit(
    ordered: Sequence[Turn], question: str, form: Prompt, fits: Fits
) -> list[Message]:
    """A prompt of as many turns as fit, the newest ones; none at all may still not fit."""
    low, high = 0, len(ordered)  # the fewest turns to leave out lie from low to high
    while low < high:
        middle = (low + high) // 2 if low else 0  # mostly all of them fit
        if fits(form(ordered[middle:], question)):
            high = middle
        else:
            low = middle + 1
    return form(ordered[low:], question)


def _transcript(turns: Sequence[Turn]) -> str:
    ordered = sorted(turns, key=lambda turn: turn.order)
    return "\n".join(f"{SPEAKERS[turn.role]}: {turn.text}" for turn in ordered)


def _text_bytes(turns: Sequence[Turn]) -> int:
    return sum(len(turn.text.encode()) for turn in turns)

"""Conversations for tests of remembering, and hypothesis strategies for how they may arrive."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from torch import Tensor

from memory_service.domain.turns import Role, Turn
from memory_service.generator.state import add, digest
from memory_service.services.ports import Encoder

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def turn(number: int, text: str = "", *, session: str = "s", minutes: int | None = None) -> Turn:
    """The turn of that number, by default a minute after the one before."""
    return Turn(
        session=session,
        role=Role.USER if number % 2 == 0 else Role.ASSISTANT,
        text=text or f"what {number} says",
        time=START + timedelta(minutes=number if minutes is None else minutes),
        id=f"t{number:03}",
    )


def state_of(encoder: Encoder, turns: Sequence[Turn]) -> Tensor:
    """The state by its definition: every session cut, every chunk encoded, all added up."""
    sessions = defaultdict(list)
    for one in turns:
        sessions[one.session].append(one)
    state = encoder.empty_state()
    for session in sessions.values():
        for chunk in encoder.chunk(session):
            state = add(state, encoder.encode(chunk))
    return state


def digest_of(encoder: Encoder, turns: Sequence[Turn]) -> str:
    """The digest of `state_of`."""
    return digest(state_of(encoder, turns))


@st.composite
def histories(draw: st.DrawFn, most: int = 12) -> list[Turn]:
    """Turns of up to three sessions that may overlap, some as long as several chunks."""
    lengths = draw(st.lists(st.sampled_from([3, 10, 25, 120]), min_size=1, max_size=most))
    return [
        turn(
            number,
            f"{number} " + "word " * (length // 5),
            session=draw(st.sampled_from("abc")),
            minutes=draw(st.integers(0, 3000)),
        )
        for number, length in enumerate(lengths)
    ]


@st.composite
def arrivals(draw: st.DrawFn, most: int = 12) -> list[list[Turn]]:
    """A history in random order and random pieces, some turns repeated as by a retry."""
    history = draw(histories(most))
    order = draw(st.permutations(history))
    again = draw(st.lists(st.sampled_from(history), max_size=3))
    for one in again:
        order.insert(draw(st.integers(0, len(order))), one)
    pieces: list[list[Turn]] = [[]]
    for one in order:
        pieces[-1].append(one)
        if draw(st.booleans()):
            pieces.append([])
    return [piece for piece in pieces if piece]

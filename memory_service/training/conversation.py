"""Facts and filler -> turns: exchanges of a synthetic chat, woven so that the roles alternate."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from memory_service.domain.turns import Role, Turn
from memory_service.training.phrasebook import Kind, capitalise, fill, load_chatter, voice

Exchange = list[tuple[Role, str]]
"""What a few consecutive messages say; neighbours of the same role become one turn."""

ASKED_SHARE = 0.3
"""Share of facts that are the reply to the other's question."""

SILENT_SHARE = 0.25
"""Share of facts that are not acknowledged, so that the next one may stand in the same turn."""

GREETING_SHARE = 0.6
"""Share of sessions that begin with a greeting."""

_BARE_REPLIES = ("Oh, {v}.", "Hmm, {v}.", "Easy, {v}.", "{v}, of course.", "{v}")


@dataclass(frozen=True)
class Fact:
    """One attribute of one of the two speakers; `renewed` gives an older one a new value."""

    kind: Kind
    owner: Role
    value: str
    renewed: bool = False


def state_fact(rng: random.Random, fact: Fact, *, test: bool) -> Exchange:
    """Make the exchange in which its owner states a fact."""
    other = _other(fact.owner)
    if fact.renewed:
        exchange = [(fact.owner, _renew(rng, fact, test=test))]
    elif rng.random() < ASKED_SHARE:
        question = voice(_pick(rng, fact.kind, "ask", test=test), first_person=False)
        lead = [rng.choice(load_chatter()["asides"])] if rng.random() < 0.4 else []
        reply = _reply(rng, fact, test=test)
        exchange = [(other, capitalise(" ".join([*lead, question]))), (fact.owner, reply)]
    else:
        exchange = [(fact.owner, _statement(rng, fact, test=test))]
    if rng.random() >= SILENT_SHARE:
        exchange.append((other, rng.choice(load_chatter()["acks"])))
    return exchange


def make_filler(rng: random.Random) -> Exchange:
    """Make an exchange that states nothing about either speaker."""
    asked, said = rng.choice(load_chatter()["exchanges"])
    memo: dict[str, str] = {}
    return [
        (Role.USER, capitalise(fill(asked, rng, memo))),
        (Role.ASSISTANT, capitalise(fill(said, rng, memo))),
    ]


def weave(rng: random.Random, sessions: Sequence[Sequence[Exchange]]) -> tuple[Turn, ...]:
    """Join the exchanges of every session into alternating turns, sessions days apart."""
    turns: list[Turn] = []
    time = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(6 * 365 * 24 * 60))
    for number, exchanges in enumerate(sessions, start=1):
        for role, text in _alternate(rng, exchanges):
            turns.append(Turn(f"s{number}", role, text, time, f"t{len(turns) + 1:04d}"))
            time += timedelta(seconds=rng.randint(10, 240))
        time += timedelta(days=rng.randint(1, 30), minutes=rng.randrange(12 * 60))
    return tuple(turns)


def _alternate(rng: random.Random, exchanges: Sequence[Exchange]) -> Exchange:
    chatter = load_chatter()
    messages: Exchange = []
    if rng.random() < GREETING_SHARE or not exchanges or exchanges[0][0][0] is not Role.USER:
        messages.append((Role.USER, rng.choice(chatter["greetings"])))
        if rng.random() < 0.5:
            messages.append((Role.ASSISTANT, rng.choice(chatter["greetings_back"])))
    messages += [message for exchange in exchanges for message in exchange]
    joined: Exchange = []
    for role, text in messages:
        if joined and joined[-1][0] is role:
            joined[-1] = (role, f"{joined[-1][1]} {text}")
        else:
            joined.append((role, text))
    if joined[-1][0] is Role.USER:
        joined.append((Role.ASSISTANT, rng.choice(chatter["acks"])))
    return joined


def _statement(rng: random.Random, fact: Fact, *, test: bool) -> str:
    whole = fact.kind.chat_test if test else fact.kind.chat
    if whole and rng.random() < 0.35:
        return capitalise(voice(rng.choice(whole), first_person=True, v=fact.value))
    clause = _clause(rng, fact, test=test)
    frame = rng.choice(load_chatter()["frames_test" if test else "frames_train"])
    preamble = fill(rng.choice(load_chatter()["preambles"]), rng) if "{P}" in frame else ""
    return _frame(frame, clause, preamble)


def _reply(rng: random.Random, fact: Fact, *, test: bool) -> str:
    if rng.random() < 0.3:
        return rng.choice(_BARE_REPLIES).replace("{v}", fact.value)
    clause = _frame("{C}.", _clause(rng, fact, test=test), "")
    if rng.random() < 0.5:
        clause = f"{rng.choice(load_chatter()['unpreambles'])} {clause}"
    return clause


def _renew(rng: random.Random, fact: Fact, *, test: bool) -> str:
    frame = rng.choice(load_chatter()["frames_update"])
    return _frame(frame, _clause(rng, fact, test=test), "")


def _clause(rng: random.Random, fact: Fact, *, test: bool) -> str:
    return voice(_pick(rng, fact.kind, "say", test=test), first_person=True, v=fact.value)


def _frame(frame: str, clause: str, preamble: str) -> str:
    upper = clause[0].upper() + clause[1:]
    return frame.replace("{P}", preamble).replace("{C}", upper).replace("{c}", clause)


def _pick(rng: random.Random, kind: Kind, field: str, *, test: bool) -> str:
    forms: tuple[str, ...] = getattr(kind, f"{field}_test" if test else field)
    return rng.choice(forms)


def _other(role: Role) -> Role:
    return Role.ASSISTANT if role is Role.USER else Role.USER

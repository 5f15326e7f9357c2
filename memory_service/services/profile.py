"""Profile: what a memory says it knows about a person, each line with the turn that says so.

The adapter is asked; an answer is told only where a turn of the person holds it. Answers that
sound sure and that nobody gave a reason for are what text memories are blamed for.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.domain.profile import QUESTIONS, ProfileQuestion, turns_that_say
from memory_service.domain.turns import Turn
from memory_service.services.ask import Ask, Reply
from memory_service.services.ports import OpenUnit
from memory_service.services.why import Claim, Depth, Reasons, Why

ASKED_AT_ONCE = 8

Report = Callable[[int, int], None]
"""Called with questions asked and to ask."""

_Known = tuple[ProfileQuestion, Reply, Sequence[Turn]]
"""A question, what the memory says, and the turns that say so too."""


@dataclass(frozen=True)
class ProfileLine:
    """One thing that the memory knows. `turn` says it: the one of the largest share in the answer.

    `confidence` is the geometric mean of the answer's token probabilities, `gain` what the memory
    adds to the answer's log-likelihood, in nats a token.
    """

    topic: str
    question: str
    answer: str
    confidence: float
    gain: float
    turn: Turn


class Profile:
    """Asks a memory about its person; nothing of it is stored."""

    def __init__(self, open_unit: OpenUnit, ask: Ask, why: Why) -> None:
        self._open_unit = open_unit
        self._ask = ask
        self._why = why

    async def of(
        self,
        memory_id: MemoryId,
        questions: Sequence[ProfileQuestion] = QUESTIONS,
        report: Report | None = None,
    ) -> list[ProfileLine]:
        """What the newest version knows, surest first.

        Raises:
            NotFound: there is no such user, or nothing was encoded yet.
            IncompatibleState: another generator or base model made the state, or it was encoded
                sequentially.
            StateConflict: turns were forgotten meanwhile.
            BackendError: the backend has too much to do, is stopping, or took too long.
        """
        replies = await self._replies(memory_id, questions, report)
        async with self._open_unit() as unit:
            kept = await unit.memories.turns(memory_id)
            aside = await unit.memories.turns_set_aside(memory_id)
        turns = [turn for turn in kept if turn.id not in aside]
        known = []
        for question, reply in zip(questions, replies, strict=True):
            saying = turns_that_say(reply.answer, question, turns)
            if saying and _gain(reply) > 0:
                known.append((question, reply, saying))
        because = await self._because(memory_id, known)
        lines = [
            ProfileLine(
                topic=question.topic,
                question=question.text,
                answer=reply.answer,
                confidence=reply.confidence,
                gain=_gain(reply),
                turn=turn,
            )
            for (question, reply, _), turn in zip(known, because, strict=True)
        ]
        return sorted(lines, key=lambda line: -line.confidence)

    async def _because(self, memory_id: MemoryId, known: Sequence[_Known]) -> list[Turn]:
        """The turn to show for each: the only one, or the one that weighs most."""
        unclear = [one for one in known if len(one[2]) > 1]
        claims = [Claim(question.text, reply.answer) for question, reply, _ in unclear]
        shares_only = Depth(chunks=0, opened=0, turns=0)
        reasons = iter(await self._why.claims(memory_id, claims, shares_only) if claims else ())
        return [
            saying[0] if len(saying) == 1 else _heaviest(saying, next(reasons))
            for _, _, saying in known
        ]

    async def _replies(
        self, memory_id: MemoryId, questions: Sequence[ProfileQuestion], report: Report | None
    ) -> list[Reply]:
        turnstile = asyncio.Semaphore(ASKED_AT_ONCE)
        done = 0

        async def reply(question: ProfileQuestion) -> Reply:
            nonlocal done
            async with turnstile:
                found = await self._ask.question(memory_id, question.text, most_new_tokens=32)
            done += 1
            if report is not None:
                report(done, len(questions))
            return found

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(reply(question)) for question in questions]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


def _gain(reply: Reply) -> float:
    if reply.log_likelihood is None or reply.without_memory is None:
        return 0.0
    return reply.log_likelihood - reply.without_memory


def _heaviest(saying: Sequence[Turn], reasons: Reasons) -> Turn:
    """By shares, which are those of turns that are encoded; what waits has none."""
    shares = {one.turn.id: one.share for one in reasons.turns}
    return max(saying, key=lambda turn: shares.get(turn.id, 0.0))

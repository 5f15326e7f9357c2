"""Profile: what a memory says it knows about a person, each line with the turn that says so.

The adapter is asked; an answer is told only where a turn of the person holds it. Answers that
sound sure and that nobody gave a reason for are what text memories are blamed for.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.domain.profile import QUESTIONS, ProfileQuestion, turn_that_says
from memory_service.domain.turns import Turn
from memory_service.services.ask import Ask, Reply
from memory_service.services.why import Claim, Depth, Reasons, Why

ASKED_AT_ONCE = 8

Report = Callable[[int, int], None]
"""Called with questions asked and to ask."""


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

    def __init__(self, ask: Ask, why: Why) -> None:
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
        asked = [
            (question, reply)
            for question, reply in zip(questions, replies, strict=True)
            if reply.answer and _gain(reply) > 0
        ]
        claims = [Claim(question.text, reply.answer) for question, reply in asked]
        shares_only = Depth(chunks=0, opened=0, turns=0)
        reasons = await self._why.claims(memory_id, claims, shares_only) if claims else []
        lines = [
            _line(question, reply, because)
            for (question, reply), because in zip(asked, reasons, strict=True)
        ]
        known = [line for line in lines if line is not None]
        return sorted(known, key=lambda line: -line.confidence)

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


def _line(question: ProfileQuestion, reply: Reply, because: Reasons) -> ProfileLine | None:
    turn = turn_that_says(reply.answer, question, [one.turn for one in because.turns])
    if turn is None:
        return None
    return ProfileLine(
        topic=question.topic,
        question=question.text,
        answer=reply.answer,
        confidence=reply.confidence,
        gain=_gain(reply),
        turn=turn,
    )

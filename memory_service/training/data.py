"""Episodes -> tensors: what one training step sees."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from memory_service.domain.chunks import chunk_session
from memory_service.domain.messages import Message
from memory_service.domain.turns import Role, Turn, parse_time
from memory_service.errors import InvalidInput
from memory_service.inference.base_models import BaseModel
from memory_service.inference.tokens import Tokens
from memory_service.training.annotated import AnnotatedDialogue, read_annotated
from memory_service.training.config import Phase, TrainingConfig
from memory_service.training.dialogue_facts import questions_from_fact
from memory_service.training.objectives import OBJECTIVES, UNRELATED, Ask, can_ask, choose
from memory_service.training.objectives import questions as ask_question
from memory_service.training.people import (
    USER_SHARE,
    Episode,
    Question,
    Split,
    list_kinds,
    make_episode,
    twin,
)

MakeEpisodes = Callable[[random.Random, int, int], list[Episode]]
"""Random stream, step and how many -> people of that step; fewer where a source has no more."""


@dataclass(frozen=True)
class Span:
    """Where a row lies in a packed line."""

    person: int
    start: int
    length: int


@dataclass(frozen=True)
class Rows:
    """Questions with their answers; all about one person are packed into one line.

    `positions` restart at each question and `attends` keeps a question from seeing the others.
    `weights` is 0 outside the answers.
    """

    spans: tuple[Span, ...]
    ids: Tensor  # int64 [person token]
    positions: Tensor  # int64 [person token]
    attends: Tensor  # bool [person 1 token token]
    targets: Tensor  # int64 [person token], the next token where weights > 0
    weights: Tensor  # float32 [person token]
    is_value: Tensor  # bool [person token], targets that carry the fact

    def to(self, device: torch.device) -> "Rows":
        """The same where a model computes."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if field.name != "spans"
        }
        return Rows(self.spans, **moved)


@dataclass(frozen=True)
class Batch:
    """Several people's chunks, questions about them, and what has nothing to do with them."""

    chunks: tuple[tuple[tuple[int, ...], ...], ...]  # of each person
    asked: Rows
    unrelated: Rows | None

    @property
    def questions(self) -> int:
        """Questions about the people."""
        return len(self.asked.spans)

    @property
    def tokens(self) -> int:
        """Tokens read, padding not counted."""
        rows = [self.asked] if self.unrelated is None else [self.asked, self.unrelated]
        chunks = sum(len(chunk) for person in self.chunks for chunk in person)
        return chunks + sum(span.length for part in rows for span in part.spans)


class Collator:
    """Renders episodes with the product's chunking and chat template."""

    def __init__(self, base: BaseModel, config: TrainingConfig) -> None:
        self._tokenizer = base.tokenizer
        self._tokens = Tokens(base)
        self._config = config

    def batch(
        self,
        episodes: Sequence[Episode],
        questions: int,
        rng: random.Random,
        mine: Sequence[int] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Batch:
        """Turn people into tensors; each is asked `questions` times, by the objectives' `weights`.

        Those are the run's where none are given. Of the people only `mine`, where that is given;
        what they are asked does not depend on it.
        """
        weights = self._config.objectives if weights is None else weights
        streams = [random.Random(rng.getrandbits(64)) for _ in episodes]  # noqa: S311
        mine = range(len(episodes)) if mine is None else mine
        asked = [self._asked(streams[one], episodes[one], questions, weights) for one in mine]
        unrelated: list[list[_Row]] = []
        for index in mine:
            objective = choose(streams[index], weights, UNRELATED)
            other = episodes[(index + 1) % len(episodes)]
            ask = None if objective is None else objective(streams[index], other)
            unrelated.append([] if ask is None else [self._row(ask)])
        return Batch(
            chunks=tuple(tuple(self._chunks(episodes[index].turns)) for index in mine),
            asked=_pack(asked, self._config),
            unrelated=_pack(unrelated, self._config) if any(unrelated) else None,
        )

    def questions(self, episodes: Sequence[Episode], count: int, rng: random.Random) -> Batch:
        """Turn people into tensors, asked nothing but their facts: for measuring."""
        people = []
        for episode in episodes:
            known = rng.sample(episode.questions, len(episode.questions))
            people.append([self._question(known[n % len(known)]) for n in range(count)])
        chunks = tuple(tuple(self._chunks(episode.turns)) for episode in episodes)
        return Batch(chunks, _pack(people, self._config), None)

    def _asked(
        self, rng: random.Random, episode: Episode, count: int, weights: Mapping[str, float]
    ) -> "list[_Row]":
        """Rows by objectives drawn by weight; questions in turn, so that all facts are asked.

        Where an objective finds nothing to ask, another one is drawn; where none does, a question.
        """
        known = rng.sample(episode.questions, len(episode.questions))
        rows: list[_Row] = []
        for number in range(count):
            left = dict(OBJECTIVES)
            while objective := choose(rng, weights, left):
                if objective is ask_question and known:
                    rows.append(self._question(known[number % len(known)]))
                    break
                if ask := objective(rng, episode):
                    rows.append(self._row(ask))
                    break
                del left[objective.__name__]
            else:
                rows += [self._question(one) for one in known[number % len(known) :][:1]]
        return rows

    def _question(self, question: Question) -> "_Row":
        return self._row(Ask((Message("user", question.text),), question.answer, question.value))

    def _chunks(self, turns: Iterable[Turn]) -> list[tuple[int, ...]]:
        sessions: dict[str, list[Turn]] = {}
        for turn in turns:
            sessions.setdefault(turn.session, []).append(turn)
        budget = self._config.generator.encoding.chunk_tokens - len(self._tokens.begin)
        return [
            tuple(self._tokens.chunk_ids(chunk.texts))
            for session in sessions.values()
            for chunk in chunk_session(session, budget, lambda text: len(self._tokens.ids(text)))
        ]

    def _row(self, ask: Ask) -> "_Row":
        prompt = self._tokens.prompt_ids(list(ask.messages))
        encoded = self._tokenizer(ask.answer, add_special_tokens=False, return_offsets_mapping=True)
        value = ask.value or ""
        start = ask.answer.find(value)
        end = start + len(value)
        is_value = [first < end and last > start for first, last in encoded["offset_mapping"]]
        eos = int(self._tokenizer.eos_token_id)
        return _Row(prompt, [*encoded["input_ids"], eos], [*is_value, False])


def people_source(config: TrainingConfig, split: Split) -> MakeEpisodes:
    """Synthetic people of the step's phase.

    People of the training split come from a pool of `config.pool` a phase, so that most of them
    were met before and their chunks need not be encoded again.
    """

    def make(rng: random.Random, step: int, count: int) -> list[Episode]:
        phase = config.phase(step)
        if split is Split.TEST:
            return [_person(rng, split, phase) for _ in range(count)]
        return [_pooled(config.seed, phase, rng.randrange(config.pool)) for _ in range(count)]

    return make


@lru_cache(maxsize=4096)
def _pooled(seed: int, phase: Phase, number: int) -> Episode:
    rng = random.Random(f"{seed}-person-{phase}-{number}")  # noqa: S311  # not security
    return _person(rng, Split.TRAIN, phase)


def _person(rng: random.Random, split: Split, phase: Phase) -> Episode:
    sessions = rng.randint(*phase.sessions)
    facts = max(rng.randint(*phase.facts), sessions)
    return make_episode(
        rng,
        split,
        facts=facts,
        sessions=sessions,
        chatter=rng.uniform(*phase.chatter),
        kinds=None if phase.kinds is None else _some_kinds(rng, phase.kinds, facts),
    )


def dialogue_source(config: TrainingConfig, paths: Sequence[Path]) -> MakeEpisodes:
    """Real dialogues: some of their sessions, asked by one of the two speakers.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it holds no dialogues, or none that can be asked about.
        ConfigurationError: it cannot be read, or holds evaluation data.
    """
    dialogues = [dialogue for path in paths for dialogue in read_annotated(path)]

    def make(rng: random.Random, step: int, count: int) -> list[Episode]:
        phase = config.phase(step)
        episodes = (
            _dialogue_episode(rng, dialogue, rng.randint(*phase.sessions))
            for dialogue in rng.sample(dialogues, len(dialogues))
        )
        weights = config.objectives_at(step)
        able = (episode for episode in episodes if can_ask(weights, episode))
        chosen = list(islice(able, count))
        if not chosen:
            named = ", ".join(str(path) for path in paths)
            wanted = ", ".join(name for name in OBJECTIVES if weights.get(name))
            raise InvalidInput("dialogues", named, f"hold nothing to ask for {wanted}")
        return chosen

    return make


def _some_kinds(rng: random.Random, kinds: int, facts: int) -> list[tuple[str, Role]]:
    """Kinds of facts for one person, out of the first `kinds` in an order that never changes."""
    every = list_kinds()
    known = random.Random("kinds").sample(every, min(kinds, len(every)))  # noqa: S311
    owners = [Role.USER if rng.random() < USER_SHARE else Role.ASSISTANT for _ in range(facts)]
    return list(zip(rng.sample(known, min(facts, len(known))), owners, strict=False))


def swap_pairs(
    config: TrainingConfig, rng: random.Random, step: int
) -> tuple[list[Episode], list[Episode]]:
    """Fresh test people and, for each, another with the same kinds of facts and other values."""
    phase = config.phase(step)
    own = people_source(config, Split.TEST)(rng, step, phase.people)
    chatter = rng.uniform(*phase.chatter)
    return own, [twin(rng, Split.TEST, episode, chatter=chatter) for episode in own]


def mixed(sources: Sequence[tuple[MakeEpisodes, float]]) -> MakeEpisodes:
    """Draw every person of a step from one of several sources, by weight."""
    makers = [make for make, _ in sources]
    weights = [weight for _, weight in sources]

    def make(rng: random.Random, step: int, count: int) -> list[Episode]:
        drawn = Counter(rng.choices(range(len(makers)), weights, k=count))
        return [
            episode
            for source in sorted(drawn)
            for episode in makers[source](rng, step, drawn[source])
        ]

    return make


def _dialogue_episode(rng: random.Random, dialogue: AnnotatedDialogue, count: int) -> Episode:
    """Some neighbouring sessions; dates are a function of the dialogue, so that chunks recur."""
    start = rng.randrange(max(1, len(dialogue.sessions) - count + 1))
    kept = range(start, min(start + count, len(dialogue.sessions)))
    written = [question for question in dialogue.questions if question.session in kept]
    user = written[0].asked_by if written else rng.choice("AB")
    dates = random.Random(dialogue.id)  # noqa: S311  # not security
    day = parse_time("2024-01-01T10:00:00Z") + timedelta(days=dates.randrange(1000))
    turns: dict[int, list[Turn]] = {}
    questions: list[Question] = []
    for number, session in enumerate(dialogue.sessions):
        for position, line in enumerate(session):
            role = Role.USER if line.speaker == user else Role.ASSISTANT
            time = day + timedelta(days=7 * number, minutes=position)
            turn = Turn(f"s{number}", role, line.text, time, f"s{number}t{position:03d}")
            turns.setdefault(number, []).append(turn)
            if line.fact and not written and number in kept:
                questions += questions_from_fact(rng, line.fact, role)
    questions += [
        Question(one.question, one.answer, one.value, "written", Role.USER)
        for one in written
        if one.asked_by == user
    ]
    return Episode(
        turns=tuple(turn for number in kept for turn in turns.get(number, ())),
        questions=tuple(questions),
        upcoming=tuple(turns.get(kept.stop, ())),
    )


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    answer: list[int]
    is_value: list[bool]


def _pack(people: list[list[_Row]], config: TrainingConfig) -> Rows:
    used = [sum(len(row.prompt) + len(row.answer) - 1 for row in rows) for rows in people]
    shape = (len(people), _round_up(max(used)))
    ids = torch.zeros(shape, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    question = torch.full(shape, -1)
    targets = torch.zeros(shape, dtype=torch.int64)
    weights = torch.zeros(shape)
    is_value = torch.zeros(shape, dtype=torch.bool)
    spans: list[Span] = []
    for person, rows in enumerate(people):
        start = 0
        for number, row in enumerate(rows):
            text = row.prompt + row.answer[:-1]
            end, first = start + len(text), start + len(row.prompt) - 1
            spans.append(Span(person, start, len(text)))
            ids[person, start:end] = torch.tensor(text)
            positions[person, start:end] = torch.arange(len(text))
            question[person, start:end] = number
            targets[person, first:end] = torch.tensor(row.answer)
            is_value[person, first:end] = torch.tensor(row.is_value)
            weights[person, first:end] = 1.0
            start = end
    weights[is_value] = config.value_weight
    # The positions of a row's answer are neighbours, and before the first one is no value.
    is_first = is_value & ~is_value.roll(1, dims=1)
    weights[is_first] *= config.first_token_weight
    same = question.unsqueeze(2) == question.unsqueeze(1)  # [person token token]
    return Rows(
        spans=tuple(spans),
        ids=ids,
        positions=positions,
        attends=torch.tril(same & (question >= 0).unsqueeze(2)).unsqueeze(1),
        targets=targets,
        weights=weights,
        is_value=is_value,
    )


def _round_up(length: int, multiple: int = 16) -> int:
    return -(-length // multiple) * multiple

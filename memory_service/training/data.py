"""Episodes -> tensors: what one training step sees."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
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
from memory_service.training.config import TrainingConfig
from memory_service.training.dialogue_facts import questions_from_fact
from memory_service.training.people import (
    USER_SHARE,
    Episode,
    Question,
    Split,
    list_kinds,
    make_episode,
    twin,
)

MakeEpisodes = Callable[[random.Random, int], list[Episode]]
"""Random stream and step -> the people of one step."""


@dataclass(frozen=True)
class Chunks:
    """Chunks of similar length, padded on the right; `owner` says whose each one is."""

    ids: Tensor  # int64 [chunk token]
    mask: Tensor  # bool [chunk token]
    owner: Tensor  # int64 [chunk]


@dataclass(frozen=True)
class Batch:
    """Several people's chunks, and questions about them.

    All questions about a person are packed into one row: `positions` restart at each question and
    `attends` keeps a question from seeing the others. `weights` is 0 outside the answers.
    """

    chunks: tuple[Chunks, ...]
    questions: int
    ids: Tensor  # int64 [person token]
    positions: Tensor  # int64 [person token]
    attends: Tensor  # bool [person 1 token token]
    targets: Tensor  # int64 [person token], the next token where weights > 0
    weights: Tensor  # float32 [person token]
    is_value: Tensor  # bool [person token], targets that carry the fact

    @property
    def tokens(self) -> int:
        """Tokens read, padding not counted."""
        read = sum(int(chunks.mask.sum()) for chunks in self.chunks)
        return read + int(self.attends.any(dim=-1).sum())


class Collator:
    """Renders episodes with the product's chunking and chat template."""

    def __init__(self, base: BaseModel, config: TrainingConfig) -> None:
        self._tokenizer = base.tokenizer
        self._tokens = Tokens(base)
        self._config = config

    def batch(self, episodes: Sequence[Episode], questions: int, rng: random.Random) -> Batch:
        """Turn people into tensors; each is asked `questions` questions."""
        chunks: list[tuple[int, list[int]]] = []
        people: list[list[_Row]] = []
        for index, episode in enumerate(episodes):
            chunks += [(index, ids) for ids in self._chunks(episode.turns)]
            asked = list(episode.questions)
            rng.shuffle(asked)
            people.append([self._row(asked[number % len(asked)]) for number in range(questions)])
        return _pack(chunks, people, self._config.value_weight)

    def _chunks(self, turns: Iterable[Turn]) -> list[list[int]]:
        sessions: dict[str, list[Turn]] = {}
        for turn in turns:
            sessions.setdefault(turn.session, []).append(turn)
        budget = self._config.generator.encoding.chunk_tokens - len(self._tokens.begin)
        return [
            self._tokens.chunk_ids(chunk.texts)
            for session in sessions.values()
            for chunk in chunk_session(session, budget, lambda text: len(self._tokens.ids(text)))
        ]

    def _row(self, question: Question) -> "_Row":
        prompt = self._tokens.prompt_ids([Message("user", question.text)])
        encoded = self._tokenizer(
            question.answer, add_special_tokens=False, return_offsets_mapping=True
        )
        start = question.answer.find(question.value)
        end = start + len(question.value)
        is_value = [first < end and last > start for first, last in encoded["offset_mapping"]]
        eos = int(self._tokenizer.eos_token_id)
        return _Row(prompt, [*encoded["input_ids"], eos], [*is_value, False])


def people_source(config: TrainingConfig, split: Split) -> MakeEpisodes:
    """Synthetic people of the step's phase."""

    def make(rng: random.Random, step: int) -> list[Episode]:
        phase = config.phase(step)
        sessions = rng.randint(*phase.sessions)
        episodes = []
        for _ in range(phase.people):
            facts = max(rng.randint(*phase.facts), sessions)
            episodes.append(
                make_episode(
                    rng,
                    split,
                    facts=facts,
                    sessions=sessions,
                    chatter=rng.uniform(*phase.chatter),
                    kinds=None if phase.kinds is None else _some_kinds(rng, phase.kinds, facts),
                )
            )
        return episodes

    return make


def dialogue_source(config: TrainingConfig, path: Path) -> MakeEpisodes:
    """Annotated real dialogues: some of their sessions, either speaker as the user.

    A step takes half as many people as of synthetic ones: real sessions are longer.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it holds no dialogues, or none that states a fact that can be asked.
        ConfigurationError: it cannot be read, or holds evaluation data.
    """
    dialogues = read_annotated(path)

    def make(rng: random.Random, step: int) -> list[Episode]:
        phase = config.phase(step)
        count = rng.randint(*phase.sessions)
        episodes = (
            _dialogue_episode(rng, dialogue, count)
            for dialogue in rng.sample(dialogues, len(dialogues))
        )
        able = (episode for episode in episodes if episode.questions)
        chosen = list(islice(able, max(1, phase.people // 2)))
        if not chosen:
            raise InvalidInput("dialogues", str(path), "states no fact that can be asked")
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
    own = people_source(config, Split.TEST)(rng, step)
    chatter = rng.uniform(*config.phase(step).chatter)
    return own, [twin(rng, Split.TEST, episode, chatter=chatter) for episode in own]


def mixed(first: MakeEpisodes, second: MakeEpisodes, share_of_second: float) -> MakeEpisodes:
    """Take each step's people from one of two sources."""

    def make(rng: random.Random, step: int) -> list[Episode]:
        return (second if rng.random() < share_of_second else first)(rng, step)

    return make


def _dialogue_episode(rng: random.Random, dialogue: AnnotatedDialogue, count: int) -> Episode:
    user = rng.choice("AB")
    start = rng.randrange(max(1, len(dialogue.sessions) - count + 1))
    day = parse_time("2024-01-01T10:00:00Z") + timedelta(days=rng.randrange(1000))
    turns: list[Turn] = []
    facts: list[tuple[str, Role]] = []
    for number, session in enumerate(dialogue.sessions[start : start + count]):
        for position, line in enumerate(session):
            role = Role.USER if line.speaker == user else Role.ASSISTANT
            time = day + timedelta(days=7 * number, minutes=position)
            turns.append(Turn(f"s{number}", role, line.text, time, f"s{number}t{position:03d}"))
            if line.fact:
                facts.append((line.fact, role))
    questions: list[Question] = []
    for fact, role in rng.sample(facts, len(facts)):
        questions += questions_from_fact(rng, fact, role)
    return Episode(turns=tuple(turns), questions=tuple(questions))


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    answer: list[int]
    is_value: list[bool]


def _pack(
    chunks: list[tuple[int, list[int]]], people: list[list[_Row]], value_weight: float
) -> Batch:
    used = [sum(len(row.prompt) + len(row.answer) - 1 for row in rows) for rows in people]
    shape = (len(people), _round_up(max(used)))
    ids = torch.zeros(shape, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    question = torch.full(shape, -1)
    targets = torch.zeros(shape, dtype=torch.int64)
    weights = torch.zeros(shape)
    is_value = torch.zeros(shape, dtype=torch.bool)
    for person, rows in enumerate(people):
        start = 0
        for number, row in enumerate(rows):
            text = row.prompt + row.answer[:-1]
            end, first = start + len(text), start + len(row.prompt) - 1
            ids[person, start:end] = torch.tensor(text)
            positions[person, start:end] = torch.arange(len(text))
            question[person, start:end] = number
            targets[person, first:end] = torch.tensor(row.answer)
            is_value[person, first:end] = torch.tensor(row.is_value)
            weights[person, first:end] = 1.0
            start = end
    weights[is_value] = value_weight
    same = question.unsqueeze(2) == question.unsqueeze(1)  # [person token token]
    return Batch(
        chunks=tuple(_group(chunks)),
        questions=sum(len(rows) for rows in people),
        ids=ids,
        positions=positions,
        attends=torch.tril(same & (question >= 0).unsqueeze(2)).unsqueeze(1),
        targets=targets,
        weights=weights,
        is_value=is_value,
    )


def _group(chunks: list[tuple[int, list[int]]], padded_tokens: int = 2048) -> Iterator[Chunks]:
    """Chunks sorted by length, in groups of limited size: little padding, little memory."""
    ordered = sorted(chunks, key=lambda chunk: len(chunk[1]))
    while ordered:
        width = _round_up(len(ordered[-1][1]))
        fitting = max(1, padded_tokens // width)
        group, ordered = ordered[-fitting:], ordered[:-fitting]
        ids = torch.zeros(len(group), width, dtype=torch.int64)
        for index, (_, tokens) in enumerate(group):
            ids[index, : len(tokens)] = torch.tensor(tokens)
        lengths = torch.tensor([len(tokens) for _, tokens in group])
        yield Chunks(
            ids=ids,
            mask=torch.arange(width) < lengths.unsqueeze(1),
            owner=torch.tensor([owner for owner, _ in group]),
        )


def _round_up(length: int, multiple: int = 16) -> int:
    return -(-length // multiple) * multiple

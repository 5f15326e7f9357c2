"""Real dialogues whose turns are annotated with the fact they state (Multi-Session Chat).

`questions/` holds questions about two public sets of dialogues, written for this project by reading
them: a dialogue whose id is known there comes with its questions.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from memory_service.errors import ConfigurationError, InvalidInput, NotFound

TRAINABLE_SPLITS = ("train", "test")
"""Of Multi-Session Chat, whose validation split is the evaluation."""


@dataclass(frozen=True)
class AnnotatedLine:
    """One message; `fact` is what it says about its speaker, in the first person."""

    speaker: str
    text: str
    fact: str | None


@dataclass(frozen=True)
class WrittenQuestion:
    """What one speaker asks the other later; `session` (from 0) is where the answer was said."""

    session: int
    asked_by: str
    question: str
    answer: str
    value: str


@dataclass(frozen=True)
class AnnotatedDialogue:
    """Sessions of two people, "A" and "B"."""

    id: str
    sessions: tuple[tuple[AnnotatedLine, ...], ...]
    questions: tuple[WrittenQuestion, ...] = ()


def read_annotated(path: Path) -> list[AnnotatedDialogue]:
    """Read a JSONL file of annotated dialogues for training.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a line is not such a dialogue.
        ConfigurationError: it holds evaluation data, which must never be trained on, or it cannot
            be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise NotFound("dialogue file", str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            "dialogues", f"{path} cannot be read ({error})", "give a JSON Lines file"
        ) from error
    dialogues = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            name, split = str(record["id"]), record["split"]
            sessions = tuple(
                tuple(
                    AnnotatedLine(turn["speaker"], turn["text"].strip(), turn.get("fact"))
                    for turn in session
                    if turn["text"].strip()
                )
                for session in record["sessions"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f"line {number}", line, f"is no annotated dialogue ({error})"
            ) from None
        if split not in TRAINABLE_SPLITS:
            raise ConfigurationError(
                "dialogues",
                f"{path} line {number} is of the split {split!r}",
                f"train on {' or '.join(TRAINABLE_SPLITS)} only: the others are for evaluation",
            )
        dialogues.append(AnnotatedDialogue(name, sessions, _written_questions().get(name, ())))
    return dialogues


@cache
def _written_questions() -> Mapping[str, tuple[WrittenQuestion, ...]]:
    """Every shipped question, by the id of its dialogue."""
    found: dict[str, list[WrittenQuestion]] = defaultdict(list)
    folder = resources.files("memory_service") / "training" / "questions"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            session = record.pop("session") - 1
            found[record.pop("dialogue")].append(WrittenQuestion(session, **record))
    return {name: tuple(questions) for name, questions in found.items()}

"""Real dialogues whose turns are annotated with the fact they state (Multi-Session Chat)."""

import json
from dataclasses import dataclass
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
class AnnotatedDialogue:
    """Sessions of two people, "A" and "B"."""

    id: str
    sessions: tuple[tuple[AnnotatedLine, ...], ...]


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
        dialogues.append(AnnotatedDialogue(name, sessions))
    return dialogues

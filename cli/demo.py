"""`memory demo`: a whole dialogue into a memory, then its questions four ways side by side."""

import fcntl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from memory_cli import output
from memory_cli.opening import Opened, opened_service
from memory_cli.options import Json
from memory_service.bootstrap import Service, models_folder
from memory_service.domain.dialogues import Dialogue, read_dialogues
from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, NotFound, Unavailable
from memory_service.settings import Settings, read_settings

if TYPE_CHECKING:
    from memory_service.evaluation.side_by_side import Row, Summary

SHIPPED_DIALOGUES = "msc_shape.jsonl"


@dataclass(frozen=True)
class _Memory:
    """One remembered dialogue."""

    memory_id: MemoryId
    turns: int
    sessions: int
    chunks: int
    text_bytes: int
    state_bytes: int
    adapter_bytes: int
    version: int
    seconds: float


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Dialogues as JSON lines, in the shape of Multi-Session Chat."
        ),
    ] = None,
    row: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of the dialogue; the first unless given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remember a dialogue and ask its questions four ways side by side.

    Without memory, with its own adapter, with another dialogue's adapter (the swap control: the
    next one of the file), and with the whole history in the prompt. Works on a database of its
    own, made anew each time.
    """
    started = time.monotonic()
    settings = read_settings()
    dialogue, other = _choose(data, row)
    _pull_if_missing(settings)
    with (
        _fresh_database(settings) as demo_settings,
        opened_service(demo_settings) as opened,
    ):
        own = _remember(opened, demo_settings.tenant, dialogue)
        swap = _remember(opened, demo_settings.tenant, other)
        if not as_json:
            _show_memories([own, swap])
        rows, summaries, cache_bytes = _ask(opened, dialogue, own, swap)
    url = demo_settings.database_url.get_secret_value()
    if as_json:
        output.show_json(_record(dialogue, other, [own, swap], rows, summaries, cache_bytes, url))
        return
    _show_answers(rows)
    _show_summary(summaries)
    output.note(
        f"The keys and values of the history take {output.in_bytes(cache_bytes)} more while each "
        "answer is made."
    )
    output.note(f"Done in {time.monotonic() - started:.0f} s. To look at the adapter:")
    program = sys.argv[0] if Path(sys.argv[0]).name == "memory" else "memory"
    output.note(f"  MEMORY_SERVICE_DATABASE_URL={url} {program} adapters show {own.memory_id.user}")


def _choose(data: Path | None, row: str | None) -> tuple[Dialogue, Dialogue]:
    """The dialogue to remember, and the next one of the file as the swap control."""
    dialogues = [one for one in _read(data) if one.questions]
    names = [one.id for one in dialogues]
    if row is not None and row not in names:
        like = ", ".join(get_close_matches(row, names) or names[:3])
        raise NotFound("dialogue with questions", row, f"there are {len(names)}, like {like}")
    if len(dialogues) < 2:
        raise InvalidInput("data", len(dialogues), "needs at least two dialogues with questions")
    index = 0 if row is None else names.index(row)
    return dialogues[index], dialogues[(index + 1) % len(dialogues)]


def _read(data: Path | None) -> list[Dialogue]:
    if data is None:
        text = resources.files("memory_cli.dialogues").joinpath(SHIPPED_DIALOGUES).read_text()
        return list(read_dialogues(text.splitlines()))
    try:
        with data.open(encoding="utf-8") as lines:
            return list(read_dialogues(lines))
    except FileNotFoundError:
        raise NotFound("file", str(data)) from None
    except UnicodeDecodeError as error:
        raise InvalidInput("data", str(data), f"is not valid UTF-8 ({error.reason})") from None


def _pull_if_missing(settings: Settings) -> None:
    from memory_service.inference import base_models  # keeps --help quick

    try:
        base_models.find(settings.base_model, cache_dir=models_folder(settings))
    except NotFound:
        if Path(settings.base_model).is_absolute():
            raise
        with output.fractions(f"getting {settings.base_model}") as report:
            base_models.pull(settings.base_model, cache_dir=models_folder(settings), report=report)


@contextmanager
def _fresh_database(settings: Settings) -> Iterator[Settings]:
    """Settings with a new SQLite file in the cache folder, held against a second demo."""
    from memory_service.storage.migrate import upgrade  # Alembic is slow

    folder = settings.cache_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "memory.db"
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"another demo is using {file}"
            raise Unavailable("demo database", problem, "wait until it is done") from None
        for leftover in folder.glob(f"{file.name}*"):
            leftover.unlink()
        url = f"sqlite:///{file}"
        upgrade(url)
        yield settings.model_copy(update={"database_url": SecretStr(url)})


def _remember(opened: Opened[Service], tenant: str, dialogue: Dialogue) -> _Memory:
    """Append a dialogue session by session, as it would have come."""
    started = time.monotonic()
    service, memory_id = opened.it, MemoryId(dialogue.id, tenant)
    sessions = [list(turns) for _, turns in groupby(dialogue.turns, key=lambda turn: turn.session)]
    with output.counting(f"remembering {dialogue.id}", "sessions") as report:
        report(0, len(sessions))
        for number, turns in enumerate(sessions, start=1):
            opened.run(service.remember.append(memory_id, turns))
            report(number, len(sessions))
    seconds = time.monotonic() - started
    overview = opened.run(service.store.inspect.user(memory_id))
    newest = opened.run(service.store.inspect.adapters(memory_id, limit=1))[0]
    return _Memory(
        memory_id=memory_id,
        turns=overview.head.turns,
        sessions=overview.sizes.sessions,
        chunks=newest.chunks,
        text_bytes=sum(len(turn.text.encode()) for turn in dialogue.turns),
        state_bytes=overview.sizes.state_bytes,
        adapter_bytes=newest.size_bytes,
        version=newest.version,
        seconds=seconds,
    )


def _ask(
    opened: Opened[Service], dialogue: Dialogue, own: _Memory, swap: _Memory
) -> tuple[list["Row"], list["Summary"], int]:
    from memory_service.evaluation.side_by_side import (  # imports torch
        SideBySide,
        kv_cache_bytes,
        summarise,
    )

    service = opened.it
    side_by_side = SideBySide(service.recall, service.reader, service.compute)
    with output.counting("asking four ways", "steps") as report:
        rows = opened.run(side_by_side.ask(dialogue, own.memory_id, swap.memory_id, report))
    kept_bytes = {
        "none": 0,
        "own": own.adapter_bytes,
        "swap": swap.adapter_bytes,
        "history": own.text_bytes,
    }
    summaries = summarise(rows, kept_bytes)
    tokens = next(one for one in summaries if one.method == "history").mean_prompt_tokens
    bytes_per_number = service.generator.config.dtype.itemsize
    cache_bytes = kv_cache_bytes(service.base.model.config, bytes_per_number, tokens or 0)
    return rows, summaries, cache_bytes


# --- rendering -----------------------------------------------------------------------------------


def _show_memories(memories: Sequence[_Memory]) -> None:
    output.show_table(
        ["adapter", "sessions ", "turns ", "chunks ", "text ", "state ", "adapter ", "took "],
        [
            (
                f"{memory.memory_id.user}@{memory.version}",
                memory.sessions,
                memory.turns,
                memory.chunks,
                output.in_bytes(memory.text_bytes),
                output.in_bytes(memory.state_bytes),
                output.in_bytes(memory.adapter_bytes),
                f"{memory.seconds:.1f} s",
            )
            for memory in memories
        ],
        title="What is remembered",
    )


def _show_answers(rows: Sequence["Row"]) -> None:
    from memory_service.evaluation.side_by_side import LABELS

    output.show_side_by_side(
        [
            (
                row.question.text,
                row.question.answer,
                {LABELS[name]: (one.text, one.holds) for name, one in row.answers.items()},
            )
            for row in rows
        ]
    )


def _show_summary(summaries: Sequence["Summary"]) -> None:
    from memory_service.evaluation.side_by_side import LABELS

    output.show_line("")
    output.show_table(
        ["", "hold the answer ", "F1 ", "prompt tokens ", "first token ", "kept per user "],
        [
            (
                LABELS[one.method],
                f"{one.holding} of {one.judged}" if one.judged else None,
                None if one.mean_f1 is None else f"{one.mean_f1:.2f}",
                None if one.mean_prompt_tokens is None else round(one.mean_prompt_tokens),
                None
                if one.mean_first_token_s is None
                else f"{1000 * one.mean_first_token_s:,.0f} ms",
                output.in_bytes(one.kept_bytes),
            )
            for one in summaries
        ],
        title="Means over all questions",
    )


def _record(  # everything that was shown
    dialogue: Dialogue,
    other: Dialogue,
    memories: Sequence[_Memory],
    rows: Sequence["Row"],
    summaries: Sequence["Summary"],
    cache_bytes: int,
    url: str,
) -> dict[str, object]:
    return {
        "dialogue": dialogue.id,
        "swap": other.id,
        "database_url": url,
        "memories": [
            {
                "adapter": f"{one.memory_id.user}@{one.version}",
                "sessions": one.sessions,
                "turns": one.turns,
                "chunks": one.chunks,
                "text_bytes": one.text_bytes,
                "state_bytes": one.state_bytes,
                "adapter_bytes": one.adapter_bytes,
                "seconds": round(one.seconds, 3),
            }
            for one in memories
        ],
        "questions": [
            {
                "question": row.question.text,
                "expected": row.question.answer,
                "value": row.question.value,
                "answers": {
                    method: {
                        "text": answer.text,
                        "holds": answer.holds,
                        "f1": answer.f1,
                        "prompt_tokens": answer.prompt_tokens,
                        "first_token_ms": round(1000 * answer.first_token_s, 1),
                    }
                    for method, answer in row.answers.items()
                },
            }
            for row in rows
        ],
        "ways": {
            one.method: {
                "holding": one.holding,
                "judged": one.judged,
                "mean_f1": one.mean_f1,
                "mean_prompt_tokens": one.mean_prompt_tokens,
                "mean_first_token_ms": None
                if one.mean_first_token_s is None
                else round(1000 * one.mean_first_token_s, 1),
                "kept_bytes": one.kept_bytes,
            }
            for one in summaries
        },
        "history_kv_cache_bytes": cache_bytes,
    }

"""`memory chat`: talk to the model with a user's memory."""

import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import typer

from memory_cli import interrupts, output
from memory_cli.opening import Opened, opened_service
from memory_cli.options import Json, User
from memory_service.bootstrap import Service
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.domain.turns import Turn, new_turn
from memory_service.errors import InvalidInput, NotFound
from memory_service.settings import read_settings

HELP = """\
/memory off   answer without the memory (turns are still stored)
/memory on    answer with it again
/history      what was said in this session
/help         this
/quit         leave; Ctrl-D too"""

EARLIER_TURNS = 200
"""Turns of a continued session that may still come into the prompt."""


@dataclass
class _Conversation:
    """One sitting: what was said, and how the next message is answered."""

    opened: Opened[Service]
    memory_id: MemoryId
    session: str
    sampling: Sampling
    window_tokens: int
    stores: bool
    uses_memory: bool
    version: int = 0  # newest adapter; 0 where there is none
    turns: list[Turn] = field(default_factory=list)


@dataclass(frozen=True)
class _Answer:
    generation: Generation
    used: str | None  # user@version
    stored: str | None


def chat(  # one parameter per argument and option
    user: User,
    session: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the sitting; its start time unless given."),
    ] = None,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this one message and exit.")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Whether to remember what is said.")
    ] = True,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether to answer with the memory.")
    ] = True,
    window: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Prompt tokens for this session's last messages."),
    ] = 1024,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer in tokens.")
    ] = 128,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, max=2.0, metavar="T", help="0 always takes the likeliest token."),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Chat as USER. Both sides' turns are remembered after each exchange.

    Where standard input is no terminal, each line of it is a message, and answers are printed one
    after the other.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    name = session or f"chat {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    if once is not None:
        new_turn(once, session=name)  # refuses what cannot be stored before the slow part
    with opened_service(settings) as opened:
        talk = _Conversation(
            opened=opened,
            memory_id=memory_id,
            session=name,
            sampling=Sampling(max_new_tokens=max_tokens, temperature=temperature),
            window_tokens=window,
            stores=store,
            uses_memory=memory,
        )
        _catch_up(talk, continued=session is not None)
        if once is not None:
            _answer_lines(talk, iter([once]), as_json)
        elif output.is_interactive() and not as_json:
            _interact(talk)
        else:
            _answer_lines(talk, _lines(), as_json)


def _catch_up(talk: _Conversation, *, continued: bool) -> None:
    """Encode what is still pending, and read what was said before in a continued session."""
    service, run = talk.opened.it, talk.opened.run
    try:
        head = run(service.store.inspect.user(talk.memory_id)).head
    except NotFound:
        return
    talk.version = head.version
    if head.pending_turns and talk.stores:
        with output.counting("encoding pending turns", "chunks") as report:
            talk.version = run(service.remember.encode_pending(talk.memory_id, report))
    if talk.version:  # an adapter that does not fit is told now, not after the first message
        run(service.recall.adapter(talk.memory_id))
    if continued:
        kept = run(
            service.store.inspect.turns(talk.memory_id, session=talk.session, limit=EARLIER_TURNS)
        )
        talk.turns = [one.turn for one in kept]


def _interact(talk: _Conversation) -> None:
    known = f"{talk.memory_id.user}@{talk.version}" if talk.version else "nothing remembered yet"
    output.note(f"{known}; /help for commands, Ctrl-D to leave", style="dim")
    prompt = f"{output.visible(talk.memory_id.user)}> "
    while True:
        try:
            text = output.read_message(prompt).strip()
        except EOFError:
            output.show_line("")
            return
        except UnicodeDecodeError:
            output.fail("text: is not valid UTF-8", InvalidInput.code)
            continue
        if text == "/quit":
            return
        if text.startswith("/"):
            _command(talk, text)
        elif text:
            try:
                answer = _exchange(talk, text, stream=True)
            except InvalidInput as error:  # the next message may be a better one
                output.fail(str(error), error.code)
            else:
                output.note(_cost(answer), style="dim")


def _answer_lines(talk: _Conversation, lines: Iterator[str], as_json: bool) -> None:
    for text in lines:
        answer = _exchange(talk, text, stream=not as_json)
        generation = answer.generation
        if as_json:
            output.show_json_line(
                {
                    "message": text,
                    "answer": generation.text,
                    "adapter": answer.used,
                    "stored_as": answer.stored,
                    "prompt_tokens": generation.prompt_tokens,
                    "completion_tokens": generation.completion_tokens,
                    "first_token_ms": round(1000 * generation.first_token_s, 1),
                }
            )
        else:
            output.note(_cost(answer), style="dim")


def _lines() -> Iterator[str]:
    """Messages from standard input.

    Raises:
        InvalidInput: names the line that is not valid UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            problem = f"is not valid UTF-8 at byte {error.start + 1}"
            raise InvalidInput(f"line {number}", line[error.start :][:8], problem) from None
        if text:
            yield text


def _exchange(talk: _Conversation, text: str, *, stream: bool) -> _Answer:
    """Answer one message and remember both sides."""
    said = new_turn(text, session=talk.session)
    with interrupts.told(lambda: "this exchange was not stored"):
        generation, used = talk.opened.run(_generate(talk, said, stream=stream))
    exchange = [said]
    answered = generation.text.replace("\x00", "").strip()
    if answered:
        exchange.append(new_turn(answered, role="assistant", session=talk.session))
    else:
        output.note("(the model said nothing)", style="dim")
    talk.turns += exchange
    stored = None
    if talk.stores:
        with output.waiting("remembering"):
            remember = talk.opened.it.remember
            talk.version = talk.opened.run(remember.append(talk.memory_id, exchange)).version
        stored = f"{talk.memory_id.user}@{talk.version}"
    return _Answer(generation, used, stored)


async def _generate(
    talk: _Conversation, said: Turn, *, stream: bool
) -> tuple[Generation, str | None]:
    """Stream the answer; which adapter it was made with."""
    chat = talk.opened.it.chat
    messages = [Message(turn.role.value, turn.text) for turn in [*talk.turns, said]]
    window = chat.window(messages, talk.window_tokens).messages
    with_memory = talk.uses_memory and talk.version > 0
    memory_id = talk.memory_id if with_memory else None
    generation: Generation | None = None
    begun = False
    async with aclosing(chat.answer(memory_id, window, talk.sampling)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Generation):
                generation = piece
                continue
            shown = piece if begun else piece.lstrip()
            begun = begun or bool(shown)
            if stream:
                output.show_piece(shown)
    if stream:
        output.show_line("")
    if generation is None:
        raise RuntimeError("a stream of answers ended without its Generation")
    return generation, f"{talk.memory_id.user}@{talk.version}" if with_memory else None


def _command(talk: _Conversation, text: str) -> None:
    match text.split():
        case ["/help"]:
            output.note(HELP, style="dim")
        case ["/history"]:
            for turn in talk.turns:
                output.show_line(f"{turn.role.value}: {turn.text}")
            if not talk.turns:
                output.note("nothing was said in this session yet", style="dim")
        case ["/memory", ("on" | "off") as switch]:
            talk.uses_memory = switch == "on"
            output.note(f"memory is {switch}", style="dim")
        case ["/memory"]:
            output.note(f"memory is {'on' if talk.uses_memory else 'off'}", style="dim")
        case _:
            output.note(f"no command {text}; /help lists them", style="yellow")


def _cost(answer: _Answer) -> str:
    generation = answer.generation
    parts = [
        f"{generation.prompt_tokens:,} prompt tokens",
        f"first token {1000 * generation.first_token_s:,.0f} ms",
        answer.used or "no memory",
    ]
    if answer.stored is not None:
        parts.append(f"now {answer.stored}")
    return "  ".join(parts)

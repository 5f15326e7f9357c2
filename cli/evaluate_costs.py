"""`memory eval speed` and `memory eval growth`: what things cost on this machine."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_cli import output
from memory_cli.opening import opened_scratch_service
from memory_cli.options import Json, numbers
from memory_service.bootstrap import load_inference
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.evaluation.growth import Cost
    from memory_service.evaluation.speed import SpeedReport

FACTS, CHATTER = 16, 0.5
"""What is encoded: a session of a synthetic person, a few chunks long."""

T = TypeVar("T")


def speed(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Of the answer that is decoded.")] = 48,
    as_json: Json = False,
) -> None:
    """Append, read-out, prefill and decoding: how fast, and on what the time goes."""
    with output.waiting("starting") as told:
        inference = load_inference(read_settings(), told)
    import torch

    from memory_service.evaluation.speed import Parts, measure_speed
    from memory_service.evaluation.tasks.recall import recall_samples

    (person,) = recall_samples(1, facts=FACTS, sessions=1, chatter=CHATTER, seed=0)
    # Both sides of a comparison run on the threads that encoding is bound to.
    torch.set_num_threads(inference.generator.config.encoding.threads)
    with output.counting("speed", "rounds") as step:
        parts = Parts(inference.base, inference.tokens, inference.encoder, inference.batch)
        found = measure_speed(parts, person.turns, rounds, tokens, step)
    if as_json:
        output.show_json({"task": "speed", **asdict(found)})
        return
    _show_speed(found)


def growth(
    turns: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Turns of one user, several sizes.")
    ] = "10,100,1000",
    users: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Users in the database, several sizes.")
    ] = "10,1000",
    as_json: Json = False,
) -> None:
    """What a turn and a chat cost as a memory grows, and as the database fills with users.

    The database is a temporary SQLite file. 10,000 turns take minutes, 100,000 users too.
    """
    from memory_service.evaluation.growth import Parts, fill_with_users, grow_user

    turn_marks, user_marks = numbers("turns", turns), numbers("users", users)
    with opened_scratch_service(read_settings()) as opened:
        it = opened.it
        parts = Parts(it.store.open_unit, it.store.append, it.remember, it.exchange)
        with output.counting("growth", "turns") as step:
            of_turns = opened.run(_all(grow_user(parts, turn_marks, step)))
        with output.counting("growth", "users") as step:
            of_users = opened.run(_all(fill_with_users(parts, user_marks, step)))
    if as_json:
        output.show_json(
            {
                "task": "growth",
                "by_turns": [asdict(one) for one in of_turns],
                "by_users": [asdict(one) for one in of_users],
            }
        )
        return
    _show_growth("One user with more and more turns", of_turns)
    _show_growth("One user of ten turns among more and more others", of_users)


async def _all(found: AsyncIterator[T]) -> list[T]:
    return [one async for one in found]


def _show_speed(found: "SpeedReport") -> None:
    output.show_fields(
        {
            "threads": found.threads,
            "encoding": f"{found.encoding_tokens_per_s:,.0f} tokens/s",
            "base model's layers": f"{found.forward_tokens_per_s:,.0f} tokens/s, same tokens",
            "encoding's share": f"{found.encoding_share:.2f} of that",
            "read-out": f"{found.readout_ms:.1f} ms, {found.modules} modules",
            "decoding": f"{found.decode_tokens_per_s:.1f} tokens/s with an adapter",
            "without": f"{found.decode_plain_tokens_per_s:.1f} tokens/s",
            "model.generate": f"{found.generate_tokens_per_s:.1f} tokens/s",
        }
    )
    for one in found.profiles:
        output.show_table(
            ["operation", "share of the time "],
            [(operation.name, f"{operation.share:.0%}") for operation in one.operations],
            title=f"{one.phase} ({one.ms:,.0f} ms under the profiler)",
        )


def _show_growth(title: str, found: "list[Cost]") -> None:
    output.show_table(
        [
            *("turns ", "users ", "until durable ", "until remembered "),
            *("first token ", "prompt tokens ", "adapter "),
        ],
        [
            (
                f"{one.turns:,}",
                f"{one.users:,}",
                f"{one.append_ms:.1f} ms",
                f"{one.encode_ms:.0f} ms",
                f"{one.first_token_ms:.0f} ms",
                one.prompt_tokens,
                output.in_bytes(one.adapter_bytes),
            )
            for one in found
        ],
        title=title,
    )

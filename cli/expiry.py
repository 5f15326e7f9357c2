"""`memory turns keep` and `expire`: until when turns are kept, and what is over."""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from memory_cli import output
from memory_cli.forget import HOW
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, User
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Receipt
from memory_service.domain.turns import parse_time
from memory_service.errors import ConfigurationError, NotFound
from memory_service.services.expire_turns import Expired, ExpireTurns
from memory_service.settings import Settings, read_settings


def keep_turns(
    user: User,
    turn_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Which turns.")],
    until: Annotated[
        str,
        typer.Option(
            metavar="TIME|none",
            help="They are forgotten from then on (ISO 8601); none leaves it to the tenant's rule.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say until when turns of USER are kept; this comes before the tenant's rule."""
    settings = read_settings()
    date = None if until == "none" else parse_time(until, field="until")
    with opened_store(settings) as store:
        store.run(store.it.expiry.keep(MemoryId(user, settings.tenant), turn_ids, date))
    if as_json:
        output.show_json({"user": user, "turn_ids": turn_ids, "expires_at": date})
    else:
        shown = "by the tenant's rule" if date is None else f"{date:%Y-%m-%d %H:%M} UTC"
        output.show_line(f"{output.count(len(turn_ids), 'turn')} of {user}: forgotten {shown}")


def expire_turns(as_json: Json = False) -> None:
    """Forget every turn whose time is over, of all users and tenants; for cron.

    A running `memory serve` does this by itself within half a minute. Each memory's adapter is then
    that of one that never saw those turns, as after `memory turns forget`.
    """
    settings = read_settings()
    with opened_store(settings) as store:
        due = store.run(store.it.expiry.due())
    gone = _expire(settings) if due else []
    if as_json:
        output.show_json(
            [
                {"tenant": one.memory_id.tenant, "user": one.memory_id.user} | asdict(one.receipt)
                for one in gone
            ]
        )
        return
    if not due:
        output.show_line("nothing is over")
        return
    output.show_table(
        ["tenant", "user", "turns forgotten ", "how"],
        [
            (one.memory_id.tenant, one.memory_id.user, one.receipt.erased.turns, _how(one))
            for one in gone
        ],
    )


def _how(one: Expired) -> str:
    reason = one.receipt.reason
    return f"{HOW[one.receipt.removal]}{f' ({reason})' if reason else ''}"


def _expire(settings: Settings) -> list[Expired]:
    """With the model; where there is none, without it, and the adapters with the turns."""
    with ExitStack() as stack:
        try:
            service = stack.enter_context(opened_service(settings))
        except (NotFound, ConfigurationError) as error:
            store, reason = stack.enter_context(opened_store(settings)), str(error)

            async def withdraw(memory_id: MemoryId, turn_ids: Collection[str]) -> Receipt:
                return await store.it.forget.withdraw(memory_id, turn_ids, reason)

            return store.run(_all(ExpireTurns(store.it.expiry, withdraw)))
        with output.waiting("forgetting"):
            return service.run(_all(service.it.expire_turns))


async def _all(expire: ExpireTurns) -> list[Expired]:
    return [one async for one in expire.all()]

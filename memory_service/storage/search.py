"""Searching the text of turns: FTS5 on SQLite, an index of tsvectors on PostgreSQL.

Both are kept in step by the database itself, in the transaction that changes a turn: triggers on
SQLite, an expression index on PostgreSQL. For people, not for prompts.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    TextClause,
    bindparam,
    column,
    literal_column,
    select,
    table,
    text,
    tuple_,
)

from memory_service.domain.memory import MemoryId
from memory_service.domain.search import Term
from memory_service.domain.turns import Turn
from memory_service.storage.queries import Queries, as_turn, turns_where
from memory_service.storage.tables import TurnRow

PUNCTUATION = "".join(chr(code) for code in range(0x21, 0x7F) if not chr(code).isalnum())

_WORDS = (
    "to_tsvector('simple'::regconfig, translate(\"left\"(turns.text, 100000), "
    f"'{PUNCTUATION.replace(chr(39), chr(39) * 2)}', repeat(' ', {len(PUNCTUATION)})))"
)
"""What PostgreSQL indexes; character for character the expression of the migration.

A tsvector has at most a megabyte, so of a very long turn it holds the beginning.
"""

_TURN_WORDS = table("turn_words", column("rowid"))


class Search(Queries):
    """Queries by what turns say."""

    async def search(
        self,
        memory_id: MemoryId,
        terms: Sequence[Term],
        *,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> list[Turn]:
        """Turns that hold all terms, newest first; the next page is `before` the last one's order.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        query = (
            turns_where(self._owner() == user_id)
            .where(self._hold(user_id, terms))
            .order_by(None)
            .order_by(TurnRow.time.desc(), TurnRow.turn_id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tuple_(TurnRow.time, TurnRow.turn_id) < before)
        return [as_turn(*row) for row in await self._transaction.read(query)]

    def _owner(self) -> ColumnElement[int]:
        """Whose a turn is. The plus makes SQLite begin with what it found, not with all turns."""
        if self._transaction.is_sqlite:
            return literal_column("+turns.user_id")
        return TurnRow.user_id.expression

    def _hold(self, user_id: int, terms: Sequence[Term]) -> ColumnElement[bool] | TextClause:
        if self._transaction.is_sqlite:
            wanted = f'user_id : "{user_id}" AND text : ({" AND ".join(map(_for_sqlite, terms))})'
            found = text("turn_words MATCH :wanted").bindparams(wanted=wanted)
            return TurnRow.id.in_(select(_TURN_WORDS.c.rowid).where(found))
        wanted = " & ".join(map(_for_postgresql, terms))
        return text(f"{_WORDS} @@ to_tsquery('simple'::regconfig, :wanted)").bindparams(
            bindparam("wanted", wanted)
        )


def _for_sqlite(term: Term) -> str:
    return f'"{" ".join(term.words)}"{"*" if term.is_beginning else ""}'


def _for_postgresql(term: Term) -> str:
    return f"'{' '.join(term.words)}'{':*' if term.is_beginning else ''}"

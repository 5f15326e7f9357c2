"""Tombstones: how a memory knows a forgotten turn again without keeping its id.

A retry, an import or a merge may bring a forgotten turn back. What is kept to refuse it is a keyed
hash of its id, so that the store alone tells nobody which ids there were.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

KEY_BYTES = 32

Tombstones = Mapping[bytes, AbstractSet[str]]
"""Keyed hashes by their key: one key for each memory that was merged into this one."""


def new_key() -> bytes:
    """A key for the tombstones of one memory."""
    return secrets.token_bytes(KEY_BYTES)


def tombstone(key: bytes, turn_id: str) -> str:
    """The keyed hash that stands for a forgotten turn, in hexadecimal."""
    return hmac.new(key, turn_id.encode(), hashlib.sha256).hexdigest()


def buried(
    tombstones: Iterable[tuple[bytes, AbstractSet[str]]], turn_ids: Iterable[str]
) -> set[str]:
    """Those of the turns that have a tombstone among these, given as pairs of key and hashes."""
    ids = set(turn_ids)
    return {
        turn_id
        for key, hashes in tombstones
        if hashes
        for turn_id in ids
        if tombstone(key, turn_id) in hashes
    }

"""Tombstones: how a memory knows a forgotten turn again without keeping its id.

A retry, an import or a merge may bring a forgotten turn back. What is kept to refuse it is a keyed
hash of its id, so that the store alone tells nobody which ids there were.
"""

import hashlib
import hmac
import secrets

KEY_BYTES = 32


def new_key() -> bytes:
    """A key for the tombstones of one memory."""
    return secrets.token_bytes(KEY_BYTES)


def tombstone(key: bytes, turn_id: str) -> str:
    """The keyed hash that stands for a forgotten turn, in hexadecimal."""
    return hmac.new(key, turn_id.encode(), hashlib.sha256).hexdigest()

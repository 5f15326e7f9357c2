"""Keys and values of several sequences of different lengths, which come and go between passes.

What transformers calls a cache. Its own caches are one length for all rows, with padding between;
here every row is as long as it is, rows are packed from the first on, and a row that ends makes
room by one copy of the last one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_TOKENS = 128
"""Room grows by this much, so that a copy is needed once in so many tokens."""


class KeyValues:
    """Keys and values [row head token width] of every layer; `lengths` are the tokens of each row.

    `expect` says where the tokens of the next pass go; the model then calls `update` once a layer.
    """

    is_compileable = False  # transformers asks every cache

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._kept: dict[int, Tensor] = {}  # layer -> heads of keys, then of values, with room
        self._rows = torch.empty(0, 1, dtype=torch.int64)
        self._positions = torch.empty(0, 0, dtype=torch.int64)
        self._seen = 0

    def open(self, count: int) -> None:
        """Begin so many empty rows after the last one."""
        self.lengths += [0] * count

    def expect(self, rows: int, tokens: int) -> Tensor:
        """Get ready for a pass of the first rows; the positions [row token] of its tokens."""
        lengths = torch.tensor(self.lengths[:rows])
        self._rows = torch.arange(rows).unsqueeze(1)
        self._positions = lengths.unsqueeze(1) + torch.arange(tokens)
        self._seen = int(self._positions[:, -1].max()) + 1
        for row in range(rows):
            self.lengths[row] += tokens
        return self._positions

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the scores [row 1 token seen]: a token sees its own row up to itself."""
        visible = torch.arange(self._seen) <= self._positions.unsqueeze(-1)
        blocked = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        return torch.where(visible, torch.zeros((), dtype=dtype), blocked).unsqueeze(1)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object
    ) -> tuple[Tensor, Tensor]:
        """Put a pass's keys and values into their places; all that its rows can see."""
        return self.put(torch.cat([key_states, value_states], dim=1), layer_idx)

    def put(self, new: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """As `update`, of heads of keys before as many of values [row head token width]."""
        kept = self._grown(layer, new, len(self.lengths), self._seen)
        kept[self._rows, :, self._positions] = new.transpose(1, 2)
        seen = kept[: len(self._rows), :, : self._seen]
        keys, values = seen.chunk(2, dim=1)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the pass; asked for, not used, as positions and mask are given."""
        return int(self._positions[:, 0].max()) if self._positions.numel() else 0

    def take(self, other: "KeyValues", row: int) -> None:
        """Append a copy of another one's row."""
        length = other.lengths[row]
        self.lengths.append(length)
        for layer, theirs in other._kept.items():
            mine = self._grown(layer, theirs, len(self.lengths), length)
            mine[len(self.lengths) - 1, :, :length] = theirs[row, :, :length]

    def cut(self, row: int, length: int) -> None:
        """Keep the first tokens of a row only."""
        for store in self._kept.values():
            store[row, :, length : self.lengths[row]] = 0
        self.lengths[row] = length

    def size_bytes(self, tokens: int) -> int:
        """What so many tokens of one row occupy."""
        return sum(
            store.shape[1] * store.shape[3] * store.element_size() * tokens
            for store in self._kept.values()
        )

    def drop(self, row: int) -> None:
        """End a row: the last one moves into its place, and nothing of it is left."""
        last = len(self.lengths) - 1
        gone, moved = self.lengths[row], self.lengths[last]
        for store in self._kept.values():
            if row != last:
                store[row, :, :moved] = store[last, :, :moved]
                store[row, :, moved:gone] = 0
            store[last, :, : moved if row != last else gone] = 0
        self.lengths[row] = moved
        self.lengths.pop()
        self._shrink()

    def keep(self, rows: Sequence[int]) -> None:
        """End all other rows; the order stays."""
        is_suffix = list(rows) == list(range(len(self.lengths) - len(rows), len(self.lengths)))
        chosen = slice(len(self.lengths) - len(rows), None) if is_suffix else torch.tensor(rows)
        self.lengths = [self.lengths[row] for row in rows]
        self._kept = {layer: store[chosen] for layer, store in self._kept.items()}

    def _shrink(self) -> None:
        """Give back room that is hardly used, so that one long row is not paid for for ever."""
        if not self.lengths:
            self._kept.clear()
        rows, length = len(self.lengths), max(self.lengths, default=0)
        for layer, store in self._kept.items():
            room_rows, _, room_length, _ = store.shape
            if 4 * rows < room_rows or 2 * length + BLOCK_TOKENS < room_length:
                self._kept[layer] = store[:rows, :, : length + BLOCK_TOKENS].clone()

    def _grown(self, layer: int, like: Tensor, rows: int, length: int) -> Tensor:
        """The layer's tensor with room for so many rows and tokens, copied where they must grow.

        New room is zero: what is masked is multiplied by zero all the same, and NaN would stay NaN.
        """
        kept = self._kept.get(layer)
        old_rows, old_length = (0, 0) if kept is None else (kept.shape[0], kept.shape[2])
        if kept is not None and old_rows >= rows and old_length >= length:
            return kept
        length = max(-(-length // BLOCK_TOKENS) * BLOCK_TOKENS, old_length)
        if rows > old_rows:  # rows come one by one: not a copy of all for each of them
            rows = max(rows, 2 * old_rows)
        store = like.new_zeros(max(rows, old_rows), like.shape[1], length, like.shape[3])
        if kept is not None:
            store[:old_rows, :, :old_length] = kept
        self._kept[layer] = store
        return store

"""One batch of answers in the making: rows join and leave between tokens, each with its adapter.

Blocking and single-threaded: `engine` calls it on the worker of `services.compute`. New rows are
read in groups of their own, a piece of the prompts at a time, and move into the decoding batch as
soon as their prompt is read; between two pieces every decoding row gets its next token. So neither
a long prompt nor many of them stall anybody's stream.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memory_service.domain.messages import Ending, Generation, Sampling
from memory_service.errors import ConfigurationError, MemoryServiceError, NumericalError
from memory_service.generator.injection import CheckedReadouts
from memory_service.inference.answer_text import AnswerText
from memory_service.inference.base_models import BaseModel
from memory_service.inference.choosing import Choice, choose
from memory_service.inference.decoder import Decoder
from memory_service.inference.key_values import KeyValues
from memory_service.inference.tokens import Tokens, stop_ids

PIECE_TOKENS = 256
"""Prompt tokens that are read between two tokens of the running answers."""


@dataclass(eq=False)
class Row:
    """One request and how far its answer is."""

    prompt: list[int]
    readouts: Tensor | None  # [layer key value]; None is no memory
    sampling: Sampling
    asked_at: float = field(default_factory=time.perf_counter)
    read: int = 0  # tokens of the prompt
    kept: KeyValues | None = None  # one row: keys and values of what was read before it joined
    said: list[int] = field(default_factory=list)
    first_token_s: float = 0.0

    @property
    def unread(self) -> int:
        """Prompt tokens still to be read."""
        return len(self.prompt) - self.read

    @property
    def most_tokens(self) -> int:
        """The longest it can become."""
        return len(self.prompt) + self.sampling.max_new_tokens


Item = str | Generation | MemoryServiceError
"""A piece of an answer's text, its end, or why it cannot be made."""


class Batch:
    """Decodes all its rows together; `step` gives every one of them a token.

    Raises:
        ConfigurationError: the base model's attention does not see all tokens before.
    """

    def __init__(
        self, base: BaseModel, tokens: Tokens, decoder: Decoder, empty_readouts: Tensor
    ) -> None:
        if getattr(base.model.config, "sliding_window", None) is not None:
            raise ConfigurationError(
                "base_model",
                "attends to a sliding window, which batches of several users do not support",
                "choose a base model with full attention",
            )
        self._tokens = tokens
        self._decoder = decoder
        self._empty = decoder.checked(empty_readouts.unsqueeze(0))
        self._stop_ids = stop_ids(base)
        self._checked: dict[Row, CheckedReadouts] = {}  # of rows with a memory
        self._running = self._rows([])
        self._reading: deque[_Rows] = deque()
        self._choices: dict[Row, Choice] = {}
        self._texts: dict[Row, AnswerText] = {}

    @property
    def rows(self) -> int:
        """All rows that are not finished."""
        return len(self._choices)

    @property
    def decoding(self) -> int:
        """Rows that get a token at every step."""
        return len(self._running.rows)

    @torch.inference_mode()
    def step(self, joining: Sequence[Row], leaving: Sequence[Row]) -> list[tuple[Row, Item]]:
        """Let rows in and out, read a piece of a prompt, give every running row its next token.

        A row is out by itself after its `Generation` or error.
        """
        for row in leaving:
            self._leave(row)
        items = self._join(joining)
        if self._reading:
            items += self._read_piece(self._reading[0])
        if self._running.rows:
            items += self._decode()
        return items

    def clear(self) -> None:
        """Let all rows out, after a failure that may have left them half changed."""
        self._running = self._rows([])
        self._reading.clear()
        self._checked.clear()
        self._choices.clear()
        self._texts.clear()

    def _join(self, joining: Sequence[Row]) -> list[tuple[Row, Item]]:
        refused: list[tuple[Row, Item]] = []
        group = []
        for row in sorted(joining, key=lambda row: row.unread):
            try:
                if row.readouts is not None:  # alone: the others must not fail with it
                    self._checked[row] = self._decoder.checked(row.readouts.unsqueeze(0))
            except MemoryServiceError as error:
                refused.append((row, error))
                continue
            group.append(row)
            self._choices[row] = Choice(row.sampling, row.prompt)
            self._texts[row] = AnswerText(self._tokens.text, row.sampling.stop)
        if group:
            self._reading.append(self._rows(group))
        return refused

    def _read_piece(self, group: "_Rows") -> list[tuple[Row, Item]]:
        """Read on in one group; the groups take turns.

        Rows of a group are ordered by what is unread, and as many of the shortest as fit into a
        piece go together, all by the same number of tokens: nothing is padded.
        """
        width = min(group.rows[0].unread, PIECE_TOKENS)
        some = group.rows[: max(1, PIECE_TOKENS // width)]
        ids = torch.tensor([row.prompt[row.read : row.read + width] for row in some])
        logits = group.logits(ids)
        for row in some:
            row.read += width
        done = [row for row in some if row.unread == 0]
        items = self._extend(done, logits[: len(done)])
        for index, row in enumerate(done):
            if row in self._choices:  # its first token did not end it
                self._running.take(group, index)
        group.drop_in_order(done)
        self._reading.popleft()
        if group.rows:
            self._reading.append(group)
        return items

    def _decode(self) -> list[tuple[Row, Item]]:
        rows = list(self._running.rows)
        logits = self._running.logits(torch.tensor([[row.said[-1]] for row in rows]))
        items = self._extend(rows, logits)
        for row in rows:
            if row not in self._choices:
                self._running.drop(row)
        return items

    def _extend(self, rows: Sequence[Row], logits: Tensor) -> list[tuple[Row, Item]]:
        """Choose every row's next token; what became certain, and which rows are finished."""
        items: list[tuple[Row, Item]] = []
        best, likeliest = logits.max(dim=-1)  # NaN is larger than every number
        good = []
        for index, is_finite in enumerate(torch.isfinite(best).tolist()):
            if is_finite:
                good.append(index)
            else:  # of this row alone: the others do not see it
                problem = "hold NaN or Inf; check the adapter and the base model"
                items.append((rows[index], NumericalError("logits", problem)))
                self._forget(rows[index])
        choices = [self._choices[rows[index]] for index in good]
        tokens = choose(logits[good], likeliest[good].tolist(), choices)
        for index, token in zip(good, tokens, strict=True):
            items += [(rows[index], item) for item in self._say(rows[index], token)]
        return items

    def _say(self, row: Row, token: int) -> list[Item]:
        row.first_token_s = row.first_token_s or time.perf_counter() - row.asked_at
        text = self._texts[row]
        is_end = token in self._stop_ids
        items: list[Item] = []
        if not is_end:
            row.said.append(token)
            items.append(text.add(token))
        is_full = len(row.said) == row.sampling.max_new_tokens
        if is_end or is_full or text.is_stopped:
            items.append(text.finish())
            is_stop = is_end or text.is_stopped  # the last piece may complete a stop string
            items.append(
                Generation(
                    text=text.text,
                    prompt_tokens=len(row.prompt),
                    completion_tokens=len(row.said),
                    first_token_s=row.first_token_s,
                    total_s=time.perf_counter() - row.asked_at,
                    ending=Ending.STOP if is_stop else Ending.LENGTH,
                )
            )
            self._forget(row)
        return [item for item in items if item != ""]

    def _leave(self, row: Row) -> None:
        self._forget(row)
        if row in self._running.rows:
            self._running.drop(row)
        for group in [group for group in self._reading if row in group.rows]:
            group.drop_in_order([row])
            if not group.rows:
                self._reading.remove(group)

    def _forget(self, row: Row) -> None:
        self._choices.pop(row, None)
        self._texts.pop(row, None)
        self._checked.pop(row, None)

    def _rows(self, rows: list[Row]) -> "_Rows":
        return _Rows(rows, self._decoder, self._checked, self._empty)


class _Rows:
    """Rows that go through the model together: their keys and values, and their adapters."""

    def __init__(
        self,
        rows: list[Row],
        decoder: Decoder,
        checked: Mapping[Row, CheckedReadouts],
        empty: CheckedReadouts,
    ) -> None:
        self.rows = rows
        self.key_values = KeyValues()
        for row in rows:
            if row.kept is None:
                self.key_values.open(1)
            else:
                self.key_values.take(row.kept, 0)
        self._decoder = decoder
        self._checked = checked
        self._empty = empty
        self._joined: list[Row] = []  # the rows that `_readouts` are of
        self._readouts: CheckedReadouts | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """Read the next tokens [row token] of the first rows; logits [row vocabulary] after."""
        rows = self.rows[: len(ids)]
        if self._joined != rows:
            self._joined, self._readouts = rows, self._join_readouts(rows)
        return self._decoder.logits(ids, self.key_values, self._readouts)

    def _join_readouts(self, rows: Sequence[Row]) -> CheckedReadouts | None:
        if all(row not in self._checked for row in rows):
            return None
        return CheckedReadouts.join([self._checked.get(row, self._empty) for row in rows])

    def take(self, group: "_Rows", index: int) -> None:
        """Let a row in that was read in a group."""
        self.key_values.take(group.key_values, index)
        self.rows.append(group.rows[index])

    def drop(self, row: Row) -> None:
        """Let a row out; the last one takes its place."""
        index = self.rows.index(row)
        self.key_values.drop(index)
        last = self.rows.pop()
        if last is not row:
            self.rows[index] = last
        self._let_go()

    def drop_in_order(self, gone: Sequence[Row]) -> None:
        """Let rows out; the order of the others stays."""
        kept = [index for index, row in enumerate(self.rows) if row not in gone]
        self.key_values.keep(kept)
        self.rows = [self.rows[index] for index in kept]
        self._let_go()

    def _let_go(self) -> None:
        """Hold no adapter of a row that left."""
        if not self.rows:
            self._joined, self._readouts = [], None

"""Batch -> loss: encode the chunks once, ask many questions of the adapters."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memory_service.generator.generator import Generator
from memory_service.generator.injection import Injector
from memory_service.training.data import Batch, Rows
from memory_service.training.frozen import FrozenBase


@dataclass(frozen=True)
class AnswerLoss:
    """Loss of a batch of answers; `value_nll` in nats per token that carries a fact, NaN without.

    `recalled` is the share of questions whose value would be said, every token of it the likeliest.
    """

    loss: Tensor
    value_nll: float
    recalled: float


def read_outs(frozen: FrozenBase, generator: Generator, batch: Batch) -> Tensor:
    """Everyone's adapter, [person layer key value]; differentiable in the generator only.

    An update is a sum over tokens, so that a person's chunks are one product. Sums are plain
    float32 here: the grid of stored states has no gradient and changes nothing a loss could see.
    """
    flat = [chunk for person in batch.chunks for chunk in person]
    hidden = iter(frozen.chunks(flat))
    states = [
        generator.update(torch.cat([next(hidden) for _ in person], dim=1))
        for person in batch.chunks
    ]
    readouts: Tensor = generator.readout(torch.stack(states))
    return readouts


class Answers:
    """The base model's answers under adapters, from what the frozen part of it has computed."""

    def __init__(self, injector: Injector, frozen: FrozenBase) -> None:
        self._injector = injector
        self._frozen = frozen

    def loss(self, readouts: Tensor, rows: Rows) -> AnswerLoss:
        """Weighted cross-entropy of the answers under each person's adapter."""
        with self._injector.apply(readouts):
            logits = self._logits(rows, self._frozen.rows(rows))
        rows = rows.to(logits.device)
        asked = rows.weights > 0
        targets, weights, is_value = (
            part[asked] for part in (rows.targets, rows.weights, rows.is_value)
        )
        nll = nn.functional.cross_entropy(logits, targets, reduction="none")
        missed = (logits.detach().argmax(dim=-1) != targets) & is_value
        return AnswerLoss(
            loss=(nll * weights).sum() / weights.sum(),
            value_nll=float(nll.detach()[is_value].mean()),
            recalled=1
            - _share_of_rows(rows, asked, missed)
            / max(1e-9, _share_of_rows(rows, asked, is_value)),
        )

    def drift(self, readouts: Tensor, rows: Rows) -> Tensor:
        """KL from the frozen model's distribution to the adapted one's, nats per token."""
        hidden = self._frozen.rows(rows)
        with torch.no_grad():
            frozen = self._logits(rows, hidden).log_softmax(dim=-1)
        with self._injector.apply(readouts):
            adapted = self._logits(rows, hidden).log_softmax(dim=-1)
        return (frozen.exp() * (frozen - adapted)).sum(dim=-1).mean()

    def _logits(self, rows: Rows, hidden: Tensor) -> Tensor:
        """Of answer positions only: the head is a fifth of a small model's work."""
        rows = rows.to(hidden.device)
        blocked = torch.finfo(hidden.dtype).min
        mask = hidden.new_zeros(rows.attends.shape).masked_fill(~rows.attends, blocked)
        output = self._frozen.upper(
            inputs_embeds=hidden, position_ids=rows.positions, attention_mask=mask, use_cache=False
        )
        head = self._injector.model.get_output_embeddings()
        logits: Tensor = head(output.last_hidden_state[rows.weights > 0]).float()
        return logits


def _share_of_rows(rows: Rows, asked: Tensor, marked: Tensor) -> float:
    """Share of rows in which at least one answer position is marked."""
    everywhere = torch.zeros_like(asked)
    everywhere[asked] = marked
    everywhere = everywhere.cpu()  # one copy instead of one for every row
    hits = [
        bool(everywhere[span.person, span.start : span.start + span.length].any())
        for span in rows.spans
    ]
    return sum(hits) / len(hits)

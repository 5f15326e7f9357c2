"""Batch -> loss: encode the chunks once, ask many questions of the adapters."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import hidden_states
from memory_service.generator.injection import Injector
from memory_service.training.data import Batch


@dataclass(frozen=True)
class AnswerLoss:
    """Loss of a batch of answers; `value_nll` in nats per token that carries a fact."""

    loss: Tensor
    value_nll: float


def read_outs(model: PreTrainedModel, generator: Generator, batch: Batch) -> Tensor:
    """Everyone's adapter, [person layer key value]; differentiable in the generator only.

    Sums are plain float32 here: the grid of stored states has no gradient and changes nothing a
    loss could see.
    """
    config = generator.config
    people = len(batch.ids)
    shape = (people, len(config.sites), config.key_width, generator.readout.columns)
    states = torch.zeros(shape)
    for chunks in batch.chunks:
        hidden = hidden_states(model, chunks.ids, config.site_layers, chunks.mask.long())
        states = states.index_add(0, chunks.owner, generator.update(hidden, chunks.mask))
    readouts: Tensor = generator.readout(states)
    return readouts


def answer_loss(
    model: PreTrainedModel, injector: Injector, readouts: Tensor, batch: Batch
) -> AnswerLoss:
    """Weighted cross-entropy of the answers under each person's adapter.

    The head runs on answer positions only: it is a fifth of a small model's work.
    """
    blocked = torch.finfo(model.dtype).min
    mask = torch.zeros(batch.attends.shape, dtype=model.dtype).masked_fill(~batch.attends, blocked)
    with injector.apply(readouts):
        output = model.get_decoder()(
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=mask,
            use_cache=False,
        )
    asked = batch.weights > 0
    logits = model.get_output_embeddings()(output.last_hidden_state[asked]).float()
    nll = nn.functional.cross_entropy(logits, batch.targets[asked], reduction="none")
    weights = batch.weights[asked]
    return AnswerLoss(
        loss=(nll * weights).sum() / weights.sum(),
        value_nll=float(nll.detach()[batch.is_value[asked]].mean()),
    )

"""Adapter -> chat: token generation in this process, each row of a batch with its own adapter."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import InvalidInput, NumericalError
from memory_service.generator.injection import Injector
from memory_service.inference.base_models import BaseModel
from memory_service.inference.tokens import Tokens

COLDEST = 1e-6
"""A lower temperature is read as this one: dividing by it could overflow."""


class LocalBackend:
    """Generates with the base model in memory. Satisfies `services.ports.Backend`.

    Calls must come from one thread (`services.compute`).
    """

    def __init__(
        self, base: BaseModel, tokens: Tokens, injector: Injector, empty_readouts: Tensor
    ) -> None:
        self._base = base
        self._tokens = tokens
        self._injector = injector
        self._empty = empty_readouts  # [layer key value], all zero: no memory
        self._stop_ids = _stop_ids(base)

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        return len(self._tokens.prompt_ids(messages))

    def stream(
        self, messages: Sequence[Message], readouts: Tensor | None, sampling: Sampling
    ) -> Iterator[str | Generation]:
        """Yield pieces of the answer's text as they come and, last, the `Generation` of them all.

        Raises:
            InvalidInput: the prompt does not fit into the base model's context.
            NumericalError: the model returned NaN or Inf.
        """
        started = time.perf_counter()
        prompt = self._tokens.prompt_ids(messages)
        first_token_s = 0.0
        answer: list[int] = []
        shown = ""
        for (token,) in self._decode([prompt], [readouts], sampling):
            first_token_s = first_token_s or time.perf_counter() - started
            if token is None:
                break
            answer.append(token)
            text = self._tokens.text(answer).strip()
            # A character of several tokens is shown when it is whole, a space when a word follows.
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        text = self._tokens.text(answer).strip()
        if len(text) > len(shown):
            yield text[len(shown) :]
        yield Generation(
            text=text,
            prompt_tokens=len(prompt),
            completion_tokens=len(answer),
            first_token_s=first_token_s,
            total_s=time.perf_counter() - started,
        )

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        readouts: Sequence[Tensor | None],
        sampling: Sampling,
    ) -> list[str]:
        """Answer several prompts in one batch, each with its own adapter.

        Raises:
            InvalidInput: a prompt does not fit into the base model's context.
            NumericalError: the model returned NaN or Inf.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        ids = [self._tokens.prompt_ids(messages) for messages in prompts]
        for tokens in self._decode(ids, readouts, sampling):
            for answer, token in zip(answers, tokens, strict=True):
                if token is not None:
                    answer.append(token)
        return [self._tokens.text(answer).strip() for answer in answers]

    @torch.inference_mode()
    def log_likelihoods(
        self,
        prompts: Sequence[Sequence[Message]],
        answers: Sequence[str],
        readouts: Sequence[Tensor | None],
    ) -> list[float]:
        """Mean log-likelihood in nats per token of an answer given its prompt, for several.

        Raises:
            InvalidInput: a prompt and its answer do not fit into the base model's context.
        """
        rows = []
        for messages, answer in zip(prompts, answers, strict=True):
            rows.append((self._tokens.prompt_ids(messages), self._tokens.ids(answer)))
        self._check_room([[*prompt, *expected] for prompt, expected in rows], new_tokens=0)
        width = max(len(prompt) + len(expected) for prompt, expected in rows)
        input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
        for row, (prompt, expected) in enumerate(rows):  # padded on the right: causal, so unseen
            input_ids[row, : len(prompt) + len(expected)] = torch.tensor([*prompt, *expected])
        with self._injector.apply(self._stack(readouts)):
            hidden = self._base.model.get_decoder()(input_ids, use_cache=False).last_hidden_state
        means = []
        for row, (prompt, expected) in enumerate(rows):
            first, last = len(prompt) - 1, len(prompt) + len(expected) - 1
            logits = self._base.model.get_output_embeddings()(hidden[row, first:last]).float()
            chosen = torch.log_softmax(logits, dim=-1).gather(
                1, torch.tensor(expected).unsqueeze(1)
            )
            means.append(float(chosen.mean()))
        return means

    def _stack(self, readouts: Sequence[Tensor | None]) -> Tensor:
        return torch.stack([self._empty if one is None else one for one in readouts])

    @torch.inference_mode()
    def _decode(
        self, prompts: Sequence[list[int]], readouts: Sequence[Tensor | None], sampling: Sampling
    ) -> Iterator[list[int | None]]:
        """Yield one token a row and step; None for rows that are finished."""
        self._check_room(prompts, sampling.max_new_tokens)
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):  # padded on the left: all rows end together
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        # Padding positions are irrelevant but must not be negative.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        stacked = self._stack(readouts)
        random = torch.Generator().manual_seed(sampling.seed)
        cache = None
        finished = [False] * len(prompts)
        for _ in range(sampling.max_new_tokens):
            with self._injector.apply(stacked):
                output = self._base.model(
                    input_ids=input_ids,
                    attention_mask=mask if len(prompts) > 1 else None,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            cache = output.past_key_values
            chosen = _choose(output.logits[:, -1].float(), sampling, random)
            tokens: list[int | None] = []
            for row, token in enumerate(chosen.tolist()):
                finished[row] = finished[row] or token in self._stop_ids
                tokens.append(None if finished[row] else token)
            yield tokens
            if all(finished):
                return
            input_ids = chosen.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1

    def _check_room(self, prompts: Sequence[list[int]], new_tokens: int) -> None:
        context: int = self._base.model.config.max_position_embeddings
        longest = max(len(prompt) for prompt in prompts)
        if longest + new_tokens > context:
            raise InvalidInput(
                "messages",
                f"{longest} tokens",
                f"do not fit with {new_tokens} new tokens into the base model's "
                f"context of {context}; shorten them",
            )


def _stop_ids(base: BaseModel) -> set[int]:
    """Every token that ends an answer: the tokenizer's and the model's."""
    configured = base.model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(base.tokenizer.eos_token_id)
    return {int(token) for token in ids if token is not None}


def _choose(logits: Tensor, sampling: Sampling, random: torch.Generator) -> Tensor:
    """Pick the next token of every row from logits [batch vocabulary]."""
    if not torch.isfinite(logits).all():
        raise NumericalError("logits", "hold NaN or Inf; check the adapter and the base model")
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / max(sampling.temperature, COLDEST), dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True)
    # Keep the smallest set of tokens that reaches top_p, always at least the likeliest.
    beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
    picked = torch.multinomial(ordered.masked_fill(beyond, 0.0), 1, generator=random)
    return order.gather(-1, picked).squeeze(-1)

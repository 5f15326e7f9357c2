"""Base model and generator as one encoder: chunk -> update -> state -> adapter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_service.domain.chunks import CHUNK_FORMAT, Chunk, chunk_session
from memory_service.domain.memory import Fingerprint
from memory_service.domain.messages import Message
from memory_service.domain.turns import Turn
from memory_service.errors import ConfigurationError
from memory_service.generator.checkpoint import generator_digest
from memory_service.generator.config import Encoding
from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import hidden_states
from memory_service.generator.injection import Injector
from memory_service.generator.provenance import share_gauge, shares
from memory_service.generator.state import from_grid
from memory_service.inference.base_models import BaseModel
from memory_service.inference.tokens import Tokens


class LocalEncoder:
    """Encodes chunks canonically: alone, unpadded, dtype and thread count from the checkpoint.

    Satisfies `services.ports.Encoder`. Calls must come from one thread (`services.compute`).

    Raises:
        ConfigurationError: the base model was loaded in another dtype than the generator's.
    """

    def __init__(
        self, base: BaseModel, tokens: Tokens, generator: Generator, injector: Injector
    ) -> None:
        if base.model.dtype != generator.config.dtype:
            raise ConfigurationError(
                "base model",
                f"was loaded as {base.model.dtype}, the generator encodes in "
                f"{generator.config.dtype}",
                "load it in the generator's dtype",
            )
        self._base = base
        self._generator = generator
        self._injector = injector
        self._tokens = tokens
        encoding = generator.config.encoding
        self.fingerprint = Fingerprint(
            generator=generator_digest(generator),
            base_model=base.digest,
            tokenizer=base.tokenizer_digest,
            chunking=f"{CHUNK_FORMAT}:{encoding.chunk_tokens}",
            encoding=encoding.encoding.value,
            numerics=(f"{encoding.dtype}:threads={encoding.threads}:grid={encoding.grid_exponent}"),
        )

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special tokens."""
        return len(self._tokens.ids(text))

    def chunk(self, turns: Sequence[Turn]) -> list[Chunk]:
        """Cut one session's turns into chunks that fit the budget and the base model's context."""
        context: int = self._base.model.config.max_position_embeddings
        budget = min(self._generator.config.encoding.chunk_tokens, context) - len(
            self._tokens.begin
        )
        return chunk_session(turns, budget, self.count_tokens)

    def encode(self, chunk: Chunk, state: Tensor | None = None) -> Tensor:
        """A chunk's exact update, int64 [layer key column].

        Under sequential encoding the adapter of `state`, the chunks before, is applied; the first
        chunk and independent encoding use the base model alone.

        Raises:
            NumericalError: the hidden states or the update are not finite or too large.
        """
        with _threads(self._generator.config.encoding.threads), torch.inference_mode():
            update = self._generator.exact_update(self._hidden(chunk, state))
        return update.clone()

    def weigh(self, chunk: Chunk, gauges: Sequence[Tensor]) -> list[dict[str, float]]:
        """The shares of a chunk's turns, by each gauge of a state that holds it.

        They are by rows: other tokens attended to a turn's, so what a memory would be
        without it is told by encoding the rest of the chunk, not by them.

        Raises:
            NumericalError: the hidden states are not finite.
        """
        generator = self._generator
        with _threads(generator.config.encoding.threads), torch.inference_mode():
            hidden = self._hidden(chunk, None)
            found: list[dict[str, float]] = [dict.fromkeys(chunk.turn_ids, 0.0) for _ in gauges]
            start = len(self._tokens.begin) + self.count_tokens(chunk.header)
            for line in chunk.lines:
                end = start + self.count_tokens(line.text)
                part = generator.update(hidden[:, start:end])
                for share, gauge in zip(found, gauges, strict=True):
                    share[line.turn_id] += float(shares(gauge, part).mean())
                start = end
        return found

    def gauge(self, state: Tensor, prompt: Sequence[Message] = (), answer: str = "") -> Tensor:
        """What shares in a state are measured by: what its adapter adds to an answer.

        Without a prompt: to everything.

        Raises:
            NumericalError: the state cannot be read out.
        """
        generator = self._generator
        value = from_grid(state, generator.config.encoding.grid_exponent)
        if not prompt:
            return share_gauge(generator, value)
        asked = self._tokens.prompt_ids(prompt)
        input_ids = torch.tensor([[*asked, *self._tokens.ids(answer)]])
        readouts = self.read_out(state).unsqueeze(0)
        apply, record = self._injector.apply(readouts), self._injector.recording()
        with torch.inference_mode(), apply, record as recorded:
            self._base.model.get_decoder()(input_ids=input_ids, use_cache=False)
        # The last token of the answer predicts nothing of it.
        inputs = [recorded[index][0, len(asked) - 1 : -1] for index in range(len(recorded))]
        return share_gauge(generator, value, inputs)

    def _hidden(self, chunk: Chunk, state: Tensor | None) -> Tensor:
        """Hidden states of a chunk [layer token feature]."""
        config = self._generator.config
        input_ids = torch.tensor([self._tokens.chunk_ids(chunk.texts)])
        sequential = config.encoding.encoding is Encoding.SEQUENTIAL
        if sequential and state is not None and bool(state.any()):
            with self._injector.apply(self._generator.read_out(state).unsqueeze(0)):
                return hidden_states(self._injector, input_ids)[0]
        return hidden_states(self._injector, input_ids)[0]

    def empty_state(self) -> Tensor:
        """The state of a memory that has seen nothing."""
        return self._generator.empty_state()

    def read_out(self, state: Tensor) -> Tensor:
        """The adapter's read-outs [layer key value].

        Raises:
            NumericalError: the state cannot be read out.
        """
        with _threads(self._generator.config.encoding.threads):
            return self._generator.read_out(state)


class _threads:  # noqa: N801  # reads as a statement: with _threads(2)
    """Run a block with a fixed number of torch threads."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._count:
            torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        if self._before != self._count:
            torch.set_num_threads(self._before)

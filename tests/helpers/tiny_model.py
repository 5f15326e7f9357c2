"""Two-layer random models and a byte tokenizer, made in memory: no hub, no network, no files."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from memory_service.inference.base_models import CHAT_TEMPLATE

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

SIZES = {
    "vocab_size": 256 + len(SPECIALS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    # Larger than usual, so that two texts and two seeds give clearly different logits.
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, so every text survives encode and decode; ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(SPECIALS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(path: Path | None = None, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama in float32, frozen; saved with the tokenizer to `path` where one is given."""
    return _made(LlamaForCausalLM, LlamaConfig(**SIZES), path, seed)


def tiny_mistral(path: Path | None = None, seed: int = 0) -> MistralForCausalLM:
    """A random Mistral in float32, frozen; saved with the tokenizer to `path` where given."""
    return _made(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None), path, seed)


def _made(
    kind: type[PreTrainedModel], config: LlamaConfig | MistralConfig, path: Path | None, seed: int
) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    model.requires_grad_(False).eval()
    if path is not None:
        model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return model

"""What a generator in training answers, for people to read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memory_service.domain.messages import Message
from memory_service.generator.injection import Injector
from memory_service.inference.tokens import Tokens
from memory_service.training.people import Question

LONGEST_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class SampleAnswer:
    """What was asked, the value that the answer should hold, and what was said."""

    question: str
    value: str
    said: str


@torch.no_grad()
def answer_sample(
    injector: Injector, tokens: Tokens, readouts: Tensor, question: Question
) -> SampleAnswer:
    """Answer a question greedily under one person's adapter, [1 layer key value].

    Raises:
        NumericalError: the adapter holds NaN or Inf.
    """
    prompt = tokens.prompt_ids([Message("user", question.text)])
    ids = torch.tensor([prompt], device=injector.model.device)
    with injector.apply(readouts):
        output = injector.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LONGEST_ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    said = tokens.text(output[0, len(prompt) :].tolist()).strip()
    return SampleAnswer(question.text, question.value, said)

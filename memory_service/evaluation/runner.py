"""Runner: every method on every sample, one JSON line per question."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from memory_service.domain.messages import Message
from memory_service.evaluation.methods import METHODS
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.scorers import exact_match, token_f1, value_recall
from memory_service.inference.encoder import LocalEncoder
from memory_service.inference.local import LocalBackend
from memory_service.services.ports import Sampling

SAMPLING = Sampling(max_new_tokens=24)
"""Greedy; answers of these tasks are short."""

BATCH_PROMPT_TOKENS = 4096
"""Questions are answered together while their prompts fit into this."""


@dataclass(frozen=True)
class Result:
    """One question answered by one method. `log_likelihood` is of the expected answer, nats/token.

    `outdated_log_likelihood` is of the answer that was right before, where the task knows one.
    `write_s` is the time to make the adapter, shared by the sample's questions.
    """

    sample: str
    method: str
    question: str
    expected: str
    value: str | None
    answer: str
    f1: float
    exact: float
    value_recall: float | None
    log_likelihood: float
    prompt_tokens: int
    write_s: float
    outdated_log_likelihood: float | None = None


def run(
    samples: Sequence[Sample],
    methods: Sequence[str],
    encoder: LocalEncoder,
    backend: LocalBackend,
    report: Callable[[int, int], None],
) -> Iterable[Result]:
    """Yield results sample by sample; `report` gets steps done and steps to do."""
    steps = len(samples) * len(methods)
    for number, sample in enumerate(samples):
        for position, method in enumerate(methods):
            yield from _answer(sample, method, encoder, backend)
            report(number * len(methods) + position + 1, steps)


def write_results(results: Iterable[Result], path: Path) -> list[Result]:
    """Write results as they come, one JSON object a line, and return them.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    with path.open("w", encoding="utf-8", buffering=1) as file:  # a line at a time
        for result in results:
            file.write(json.dumps(asdict(result)) + "\n")
            kept.append(result)
    return kept


def _answer(
    sample: Sample, method: str, encoder: LocalEncoder, backend: LocalBackend
) -> Iterable[Result]:
    if not sample.asked:
        return
    started = time.perf_counter()
    asking = METHODS[method](sample, encoder)
    write_s = time.perf_counter() - started
    counts = [backend.prompt_tokens(prompt) for prompt in asking.prompts]
    together = max(1, BATCH_PROMPT_TOKENS // max(counts))
    for first in range(0, len(sample.asked), together):
        part = slice(first, first + together)
        asked, prompts = sample.asked[part], asking.prompts[part]
        readouts = [asking.readouts] * len(prompts)
        answers = backend.answers(prompts, readouts, SAMPLING)
        likelihoods = backend.log_likelihoods(prompts, [one.answer for one in asked], readouts)
        before = _outdated(asked, prompts, readouts, backend)
        for one, answer, likelihood, was, tokens in zip(
            asked, answers, likelihoods, before, counts[part], strict=True
        ):
            yield Result(
                sample=sample.id,
                method=method,
                question=one.question,
                expected=one.answer,
                value=one.value,
                answer=answer,
                f1=token_f1(answer, one.answer),
                exact=exact_match(answer, one.answer),
                value_recall=None if one.value is None else value_recall(answer, one.value),
                log_likelihood=likelihood,
                outdated_log_likelihood=was,
                prompt_tokens=tokens,
                write_s=write_s,
            )


def _outdated(
    asked: Sequence[Asked],
    prompts: Sequence[list[Message]],
    readouts: Sequence[Tensor | None],
    backend: LocalBackend,
) -> list[float | None]:
    """Likelihoods of the answers that were right before, where there are any."""
    known = [number for number, one in enumerate(asked) if one.outdated]
    found: list[float | None] = [None] * len(asked)
    if known:
        likelihoods = backend.log_likelihoods(
            [prompts[number] for number in known],
            [asked[number].outdated or "" for number in known],
            [readouts[number] for number in known],
        )
        for number, likelihood in zip(known, likelihoods, strict=True):
            found[number] = likelihood
    return found

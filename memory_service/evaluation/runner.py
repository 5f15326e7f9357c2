"""Runner: every method on every sample, with scores and costs of every question."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from memory_service.domain.messages import Message
from memory_service.evaluation.answering import Answered, Reads, answer_all
from memory_service.evaluation.flops import ModelFlops
from memory_service.evaluation.methods import METHODS, Kept
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.scorers import (
    exact_match,
    rouge_l_recall,
    token_f1,
    value_recall,
)
from memory_service.services.ports import Encoder


@dataclass(frozen=True)
class Result:
    """One question answered by one method, with what it cost.

    `log_likelihood` is of the expected answer, `outdated_log_likelihood` of the wrong one that the
    task knows, in nats a token. `flops` are of search, prompt and answer with nothing kept but what
    the method keeps. `write_s` and `write_flops` are of writing all the sample's `turns`, once for
    all of its questions. Times are None where they were not measured (see `answering`).
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
    rouge_l: float
    log_likelihood: float
    prompt_tokens: int
    answer_tokens: int
    flops: int
    kept_bytes: int
    turns: int
    write_s: float
    write_flops: int
    first_token_s: float | None = None
    again_s: float | None = None
    total_s: float | None = None
    outdated_log_likelihood: float | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    prompt: Sequence[Mapping[str, str]] = ()


def run(
    samples: Sequence[Sample],
    methods: Sequence[str],
    encoder: Encoder,
    reader: Reads,
    flops: ModelFlops,
    report: Callable[[int, int], None],
    done: Collection[tuple[str, str]] = (),
) -> Iterator[Result]:
    """Yield results sample by sample; `report` gets steps done and steps to do.

    What is `done` (sample and method) is left out.
    """
    steps = [
        (sample, method)
        for sample in samples
        for method in methods
        if (sample.id, method) not in done
    ]
    reader.read([Message("user", "Hello.")], None)  # a process's first call is slow: not measured
    for number, (sample, method) in enumerate(steps, start=1):
        if sample.asked:
            yield from _results(sample, method, encoder, reader, flops)
        report(number, len(steps))


def _results(
    sample: Sample, method: str, encoder: Encoder, reader: Reads, flops: ModelFlops
) -> Iterator[Result]:
    started = time.perf_counter()
    kept = METHODS[method](sample, encoder)
    write_s = time.perf_counter() - started
    write_flops = kept.index_flops + flops.writing(kept.encoded_tokens)
    answers = answer_all(kept, sample.asked, reader)
    for asked, answered in zip(sample.asked, answers, strict=True):
        text = answered.text
        yield Result(
            sample=sample.id,
            method=method,
            question=asked.question,
            expected=asked.answer,
            value=asked.value,
            answer=text,
            f1=token_f1(text, asked.answer),
            exact=exact_match(text, asked.answer),
            value_recall=None if asked.value is None else value_recall(text, asked.value),
            rouge_l=rouge_l_recall(text, asked.answer),
            log_likelihood=answered.log_likelihood or 0.0,
            outdated_log_likelihood=answered.outdated_log_likelihood,
            prompt_tokens=answered.prompt_tokens,
            answer_tokens=answered.answer_tokens,
            flops=_flops(kept, asked, answered, flops),
            kept_bytes=kept.size_bytes,
            turns=len(sample.turns),
            write_s=write_s,
            write_flops=write_flops,
            first_token_s=answered.first_token_s,
            again_s=answered.again_s,
            total_s=answered.total_s,
            groups={**asked.groups, "history": _length(sample.words)},
            prompt=[asdict(message) for message in answered.prompt],
        )


def _flops(kept: Kept, asked: Asked, answered: Answered, flops: ModelFlops) -> int:
    return kept.question_flops(asked.question) + flops.answering(
        answered.prompt_tokens, answered.answer_tokens, adapted=kept.readouts is not None
    )


def _length(words: int) -> str:
    """The history's length, to the next power of two."""
    upper = 1 << max(0, words - 1).bit_length()
    return f"{upper // 2 + 1:>6,}-{upper:,} words" if upper > 1 else "     1 word"

"""`memory eval`: how much of a person the adapter remembers, beside the controls."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_cli import output
from memory_cli.options import Json
from memory_service.bootstrap import load_inference
from memory_service.errors import InvalidInput, NotFound
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.evaluation.report import Comparison, Interval, MethodReport
    from memory_service.evaluation.samples import Sample

CHATTER = 0.5
"""About one turn of small talk for each that states a fact."""

DEFAULT_METHODS = "none,own,swap,history,history+swap"

Methods = Annotated[str, typer.Option(metavar="NAMES", help="Which methods, separated by commas.")]
Seed = Annotated[int, typer.Option(help="Of the people and of the bootstrap.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write every answer here, as JSON lines.")
]

app = typer.Typer(help="Measure a generator.", no_args_is_help=True, rich_markup_mode=None)


@app.command("recall")
def recall(
    people: Annotated[int, typer.Option(min=2, help="How many people.")] = 16,
    facts: Annotated[int, typer.Option(min=1, help="Facts each person tells.")] = 8,
    sessions: Annotated[int, typer.Option(min=1, help="Over how many sessions.")] = 1,
    further: Annotated[
        int, typer.Option(min=0, help="Sessions about other things that follow.")
    ] = 0,
    methods: Methods = DEFAULT_METHODS,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask synthetic people's facts; values and phrasings were never trained on."""
    from memory_service.evaluation.tasks.recall import recall_samples

    samples = recall_samples(
        people, facts=facts, sessions=sessions, chatter=CHATTER, seed=seed, further=further
    )
    _evaluate("recall", samples, methods, seed, out, as_json)


@app.command("dmr")
def dmr(
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Dialogues with questions, as JSON lines.")
    ],
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first ones.")] = None,
    methods: Methods = DEFAULT_METHODS,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask about real dialogues (Deep Memory Retrieval).

    Where the file says what was true before (`wrong_answer`), also how often the right answer is
    the likelier one.
    """
    _evaluate("dmr", _dialogue_samples(data, limit), methods, seed, out, as_json)


@app.command("locality")
def locality(
    people: Annotated[int, typer.Option(min=2, help="How many people.")] = 12,
    exchanges: Annotated[int, typer.Option(min=1, help="Asked of each.")] = 20,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real people instead of synthetic ones.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Perplexity of other people's chats with an adapter, against the base model's own."""
    from memory_service.evaluation.report import perplexity_ratio
    from memory_service.evaluation.tasks.locality import (
        locality_samples,
        measure_drift,
        read_exchanges,
    )
    from memory_service.evaluation.tasks.recall import recall_samples

    known = (
        recall_samples(people, facts=8, sessions=1, chatter=CHATTER, seed=seed)
        if data is None
        else _dialogue_samples(data, people)
    )
    samples = locality_samples(known, read_exchanges(), exchanges, seed)
    with output.waiting("starting") as told:
        inference = load_inference(read_settings(), told)
    with output.counting("locality", "measured") as step:
        drifts = list(measure_drift(samples, inference.encoder, inference.backend, step))
    ratio = perplexity_ratio(drifts, seed)
    if as_json:
        output.show_json(
            {"task": "locality", "people": len(drifts), "perplexity_ratio": asdict(ratio)}
        )
        return
    output.show_line(
        f"perplexity with the adapter / without, {len(drifts)} people, "
        f"{exchanges} exchanges of others each: {_interval(ratio)}"
    )


def _dialogue_samples(data: Path, limit: int | None) -> "list[Sample]":
    from memory_service.domain.dialogues import read_dialogues
    from memory_service.evaluation.tasks.dmr import dmr_samples

    if not data.is_file():
        raise NotFound("dialogue file", str(data))
    with data.open(encoding="utf-8") as lines:
        return dmr_samples(list(read_dialogues(lines)), limit)


def _evaluate(
    task: str, samples: "list[Sample]", methods: str, seed: int, out: Path | None, as_json: bool
) -> None:
    from memory_service.evaluation import report
    from memory_service.evaluation.methods import METHODS
    from memory_service.evaluation.runner import run, write_results

    names = [name.strip() for name in methods.split(",")]
    for name in names:
        if name not in METHODS:
            raise InvalidInput("methods", name, f"must be of: {', '.join(METHODS)}")
    with output.waiting("starting") as told:
        inference = load_inference(read_settings(), told)
    with output.counting(task, "answered") as step:
        answered = run(samples, names, inference.encoder, inference.backend, step)
        results = list(answered) if out is None else write_results(answered, out)
    reports = [report.summarise(results, name, seed) for name in names]
    comparison = report.compare(results, seed)
    preferences = [
        found for name in names if (found := report.prefer_right(results, name, seed)) is not None
    ]
    if as_json:
        output.show_json(
            {
                "task": task,
                "n": reports[0].questions,
                "fingerprint": inference.encoder.fingerprint.digest,
                "methods": [_record(one) for one in reports],
                "own_against_swap": None if comparison is None else asdict(comparison),
                "right_over_outdated": [asdict(one) for one in preferences],
            }
        )
        return
    _show(task, len(samples), reports, comparison)
    for one in preferences:
        output.show_line(
            f"{one.method}: the right answer is likelier than the outdated one for "
            f"{_interval(one.right, percent=True)} of the questions that know one"
        )


def _record(one: "MethodReport") -> dict[str, object]:
    return {
        "method": one.method,
        "f1": one.f1.mean,
        "f1_low": one.f1.low,
        "f1_high": one.f1.high,
        "exact": one.exact,
        "value_recall": None if one.value_recall is None else one.value_recall.mean,
        "log_likelihood": one.log_likelihood,
        "prompt_tokens": one.prompt_tokens,
    }


def _show(
    task: str, people: int, reports: "list[MethodReport]", comparison: "Comparison | None"
) -> None:
    output.show_table(
        ["method", "F1 ", "exact ", "holds the value ", "log-likelihood ", "prompt tokens "],
        [
            (
                one.method,
                _interval(one.f1),
                f"{one.exact:.3f}",
                "-" if one.value_recall is None else _interval(one.value_recall),
                f"{one.log_likelihood:.2f}",
                f"{one.prompt_tokens:,.0f}",
            )
            for one in reports
        ],
        title=f"{task}: {reports[0].questions} questions about {people} people "
        "(95% bootstrap intervals over people)",
    )
    if comparison is not None:
        output.show_line(
            f"own minus swap: F1 {_interval(comparison.f1_difference)}; the expected answer is "
            f"likelier under own for {_interval(comparison.likelier, percent=True)} of questions"
        )


def _interval(interval: "Interval", *, percent: bool = False) -> str:
    if percent:
        return f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

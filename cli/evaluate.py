"""`memory eval`: how much of a person the adapter remembers, beside the controls, and its cost."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_cli import evaluate_costs, evaluation_output, output
from memory_cli.opening import opened_scratch_service
from memory_cli.options import Json, numbers
from memory_service.bootstrap import Inference, load_inference
from memory_service.domain.dialogues import Dialogue, read_dialogues
from memory_service.errors import InvalidInput, NotFound
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.evaluation.samples import Sample

CHATTER = 0.5
"""About one turn of small talk for each that states a fact."""

DEFAULT_METHODS = "none,own,swap,history,history+swap"
UPDATE_METHODS = "none,own,swap,history"

Methods = Annotated[str, typer.Option(metavar="NAMES", help="Which methods, separated by commas.")]
Seed = Annotated[int, typer.Option(help="Of the people and of the bootstrap.")]
Limit = Annotated[int | None, typer.Option(min=2, help="Only so many people.")]
Data = Annotated[Path, typer.Option(metavar="FILE", help="Dialogues with questions, JSON lines.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep answers, manifest and report here; go on where it was."),
]

app = typer.Typer(help="Measure a generator.", no_args_is_help=True, rich_markup_mode=None)


@app.command("recall")
def recall(
    people: Annotated[int, typer.Option(min=2, help="How many people.")] = 16,
    facts: Annotated[str, typer.Option(metavar="NUMBERS", help="Facts each tells.")] = "8",
    sessions: Annotated[str, typer.Option(metavar="NUMBERS", help="Over how many sessions.")] = "1",
    further: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Sessions about other things that follow.")
    ] = "0",
    methods: Methods = DEFAULT_METHODS,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask synthetic people's facts; values and phrasings were never trained on.

    Several numbers, separated by commas, make a grid: every combination, with people of its own.
    """
    from memory_service.evaluation.tasks.recall import recall_grid

    samples = recall_grid(
        people,
        facts=numbers("facts", facts),
        sessions=numbers("sessions", sessions),
        distances=numbers("further", further),
        chatter=CHATTER,
        seed=seed,
    )
    _evaluate("recall", samples, methods, seed, out, as_json)


@app.command("dmr")
def dmr(
    data: Data,
    limit: Limit = None,
    methods: Methods = DEFAULT_METHODS,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask about real dialogues (Deep Memory Retrieval)."""
    from memory_service.evaluation.tasks.dmr import dmr_samples

    _evaluate("dmr", dmr_samples(_dialogues(data), limit), methods, seed, out, as_json)


@app.command("membench")
def membench(
    data: Data,
    limit: Limit = None,
    methods: Methods = UPDATE_METHODS,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask for facts that changed: how often the right answer is likelier than the outdated one."""
    from memory_service.evaluation.tasks.membench import membench_samples

    _evaluate("membench", membench_samples(_dialogues(data), limit), methods, seed, out, as_json)


@app.command("longmemeval")
def longmemeval(
    data: Data,
    limit: Limit = None,
    methods: Methods = UPDATE_METHODS,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Ask about LongMemEval's evidence: sessions, updates, time, abstention."""
    from memory_service.evaluation.tasks.longmemeval import longmemeval_samples

    samples = longmemeval_samples(_dialogues(data), limit)
    _evaluate("longmemeval", samples, methods, seed, out, as_json)


@app.command("locality")
def locality(
    people: Annotated[int, typer.Option(min=2, help="How many people.")] = 12,
    exchanges: Annotated[int, typer.Option(min=1, help="Asked of each.")] = 20,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real people instead of synthetic ones.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Perplexity of other people's chats with an adapter, against the base model's own."""
    from memory_service.evaluation.report import perplexity_ratio
    from memory_service.evaluation.run_directory import RunDirectory, make_manifest
    from memory_service.evaluation.tasks.dmr import dmr_samples
    from memory_service.evaluation.tasks.locality import (
        Drift,
        locality_samples,
        measure_drift,
        read_exchanges,
    )
    from memory_service.evaluation.tasks.recall import recall_samples

    known = (
        recall_samples(people, facts=8, sessions=1, chatter=CHATTER, seed=seed)
        if data is None
        else dmr_samples(_dialogues(data), people)
    )
    samples = locality_samples(known, read_exchanges(), exchanges, seed)
    inference = _load()
    folder, drifts = None, []
    if out is not None:
        config: dict[str, object] = {"exchanges": exchanges, "seed": seed}
        fingerprint = inference.encoder.fingerprint.digest
        folder = RunDirectory(out, make_manifest("locality", config, samples, fingerprint))
        drifts = folder.done_lines(Drift)
    done = {one.sample for one in drifts}
    missing = [one for one in samples if one.id not in done]
    with output.counting("locality", "measured") as step:
        found = measure_drift(missing, inference.encoder, inference.backend, step)
        drifts += list(found) if folder is None else folder.write(found)
    ratio = perplexity_ratio(drifts, seed)
    record = {"task": "locality", "people": len(drifts), "perplexity_ratio": asdict(ratio)}
    if folder is not None:
        folder.finish(record)
    if as_json:
        output.show_json(record)
        return
    output.show_line(
        f"perplexity with the adapter / without, {len(drifts)} people, "
        f"{exchanges} exchanges of others each: {evaluation_output.interval(ratio)}"
    )


@app.command("provenance")
def provenance(
    data: Data,
    limit: Limit = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """How often `memory why` finds the turn that tells what was answered right.

    A question counts where the memory's answer has a token F1 of at least 0.5 and the file says
    which turn tells it (`evidence`). Memories are made in a temporary SQLite file.
    """
    from memory_service.evaluation.run_directory import RunDirectory, make_manifest
    from memory_service.evaluation.tasks.dmr import dmr_samples
    from memory_service.evaluation.tasks.provenance import Parts, Traced, found_turns, trace

    samples = dmr_samples(_dialogues(data), limit)
    with opened_scratch_service(read_settings()) as opened:
        it = opened.it
        parts = Parts(it.remember, it.ask, it.why)
        fingerprint = it.encoder.fingerprint.digest
        folder, traced = None, []
        if out is not None:
            manifest = make_manifest("provenance", {"seed": seed}, samples, fingerprint)
            folder = RunDirectory(out, manifest)
            traced = folder.done_lines(Traced)
        done = {one.sample for one in traced}
        missing = [one for one in samples if one.id not in done]
        with output.counting("provenance", "people") as step:
            for number, sample in enumerate(missing, start=1):
                found = opened.run(trace(parts, sample))
                traced += found if folder is None else folder.write(found)
                step(number, len(missing))
    found_by = found_turns(traced, seed)
    record = {"task": "provenance", "fingerprint": fingerprint, **asdict(found_by)}
    if folder is not None:
        folder.finish(record)
    if as_json:
        output.show_json(record)
    else:
        evaluation_output.show_provenance(found_by)


@app.command("profile")
def profile(
    people: Annotated[int, typer.Option(min=1, help="How many people.")] = 20,
    facts: Annotated[int, typer.Option(min=1, help="Facts each tells, in four sessions.")] = 24,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """How much of `memory profile` is true, and how much of what was told is in it.

    Of synthetic people; told counts what the person said of the profile's topics.
    """
    from memory_service.evaluation.tasks.profile import profile_person, profile_report
    from memory_service.evaluation.tasks.recall import recall_samples

    samples = recall_samples(people, facts=facts, sessions=4, chatter=CHATTER, seed=seed)
    found = []
    with opened_scratch_service(read_settings()) as opened:
        it = opened.it
        with output.counting("profile", "people") as step:
            for number, sample in enumerate(samples, start=1):
                one, _ = opened.run(profile_person(it.remember, it.profile, sample))
                found.append(one)
                step(number, people)
        fingerprint = it.encoder.fingerprint.digest
    report = profile_report(found, seed)
    if as_json:
        output.show_json({"task": "profile", "fingerprint": fingerprint, **asdict(report)})
    else:
        evaluation_output.show_profile(report)


app.command("speed")(evaluate_costs.speed)
app.command("growth")(evaluate_costs.growth)


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run (`--out`).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of another run.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Differences of two runs, B minus A, paired question by question."""
    from memory_service.evaluation.report import differences
    from memory_service.evaluation.run_directory import read_run

    (before, a), (after, b) = read_run(first), read_run(second)
    if before["task"] != after["task"]:
        problem = f"is of {before['task']}, the other of {after['task']}"
        raise InvalidInput("run", str(first), problem)
    found = differences(a, b, seed)
    if as_json:
        records = [asdict(one) for one in found]
        output.show_json({"task": before["task"], "a": before, "b": after, "methods": records})
        return
    evaluation_output.show_differences(before["task"], found)


def _dialogues(data: Path) -> list[Dialogue]:
    if not data.is_file():
        raise NotFound("dialogue file", str(data))
    with data.open(encoding="utf-8") as lines:
        return list(read_dialogues(lines))


def _load() -> Inference:
    with output.waiting("starting") as told:
        return load_inference(read_settings(), told)


def _evaluate(
    task: str, samples: "list[Sample]", methods: str, seed: int, out: Path | None, as_json: bool
) -> None:
    from memory_service.evaluation.flops import ModelFlops
    from memory_service.evaluation.methods import METHODS
    from memory_service.evaluation.report import report_object
    from memory_service.evaluation.run_directory import RunDirectory, make_manifest, pairs_of
    from memory_service.evaluation.runner import run

    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        if name not in METHODS:
            raise InvalidInput("methods", name, f"must be of: {', '.join(METHODS)}")
    inference = _load()
    fingerprint = inference.encoder.fingerprint.digest
    folder = None
    if out is not None:
        config: dict[str, object] = {"methods": names, "seed": seed}
        folder = RunDirectory(out, make_manifest(task, config, samples, fingerprint))
    done = [] if folder is None else folder.done(samples)
    if done:
        output.note(f"{len(done)} answers are there already; going on")
    flops = ModelFlops(inference.base.model, inference.generator)
    with output.counting(task, "answered") as step:
        answered = run(
            samples, names, inference.encoder, inference.reader, flops, step, pairs_of(done)
        )
        results = done + (list(answered) if folder is None else folder.write(answered))
    report = report_object(task, fingerprint, results, names, seed)
    if folder is not None:
        folder.finish(report.record())
    if as_json:
        output.show_json(report.record())
        return
    evaluation_output.show_report(report, len(samples))

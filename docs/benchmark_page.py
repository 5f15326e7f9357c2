"""The page on benchmarks, from what its commands said."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_pictures import Report, cells, draw_curve, draw_lengths, draw_plane

DOCS = Path(__file__).parent
PICTURES = DOCS / "benchmarks"
PAGE = DOCS / "benchmarks.md"
SAMPLES = PICTURES / "samples.jsonl"
NOTICE = "<!-- Written by docs/benchmarks.py (`make bench`); do not edit. -->\n"

SAMPLED_PEOPLE = 3
PAPER = {"none": 8.1, "own": 40.2, "history": 66.0}
"""F1 in percent on Multi-Session Chat, Mistral-7B-Instruct (arXiv 2411.05877, table 1)."""

KEPT_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 2
"""SmolLM2-135M: layers x (keys, values) x heads of these x their width x bytes of bfloat16."""


@dataclass(frozen=True)
class Measured:
    """A command, the object that it printed, and where its samples are."""

    name: str
    command: str
    report: Report
    manifest: Mapping[str, Any]
    results: Path


def write_page(measured: Mapping[str, Measured], command: str) -> None:
    """Draw, keep the samples of a few people, write; `command` makes the whole page."""
    PAGE.write_text(NOTICE + "".join(_page(measured, command)), encoding="utf-8")
    _write_samples(measured["recall"].results)


def _page(measured: Mapping[str, Measured], command: str) -> Iterator[str]:
    manifest = measured["recall"].manifest
    machine = manifest["machine"]
    yield "# Benchmarks\n\n"
    yield (
        f"    {command}\n\n"
        f"Generator {manifest['fingerprint'][:12]}, commit {manifest['commit'][:12]}, "
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; greedy. "
        f"Load average of those cores when this was written: {os.getloadavg()[2]:.1f} (times of a "
        "busy machine are longer; scores, tokens, FLOPs and bytes are not). "
        "Brackets are 95% bootstrap intervals over people. Every section begins with the command "
        "that prints its figures (and more: exact match, ROUGE-L, breakdowns); run again, a "
        "command goes on where it was. What the methods and columns mean: "
        "[measuring](evaluation.md).\n\n"
        "**From a number to the sample.** Each command keeps every question with its prompt, "
        "answer, scores and costs in `results.jsonl` of the folder after `--out`, a JSON line "
        f"each. Those of {SAMPLED_PEOPLE} synthetic people, by all methods, are "
        "[here](benchmarks/samples.jsonl) for reading without running anything.\n"
    )
    if "dmr" in measured:
        yield "\n## Real dialogues (Deep Memory Retrieval on Multi-Session Chat, validation)\n"
        yield from _methods(measured["dmr"])
        yield from _by(measured["dmr"].report, "session", "session of the evidence")
    yield "\n## Synthetic people, eight facts in one session\n"
    yield from _methods(measured["recall"])
    yield from _curves(measured)
    if "distance" in measured:
        yield from _lengths(measured)
    yield from _grounds(measured)
    yield from _paper(measured)
    if "speed" in measured:
        yield from _speed(measured["speed"])
    if "growth" in measured:
        yield from _growth(measured["growth"])
    if "membench" in measured:
        yield "\n## Facts that changed\n\n"
        yield f"    {measured['membench'].command}\n"
        for one in measured["membench"].report["right_over_outdated"]:
            yield (
                f"\n{one['method']}: the right answer is likelier than the outdated one for "
                f"{_percent(one['right'])} of questions.\n"
            )


def _grounds(measured: Mapping[str, Measured]) -> Iterator[str]:
    """What answers rest on, and what a profile is worth."""
    if "provenance" in measured:
        found = measured["provenance"].report
        yield f"\n## What an answer rests on\n\n    {measured['provenance'].command}\n\n"
        yield (
            f"{found['traced']} of {found['questions']} questions were answered right and have a "
            "turn that tells it. Where `memory why` puts that turn among all turns:\n\n"
            "| ranked by | first | in the top 3 |\n|---|---|---|\n"
            f"| leaving out | {_percent(found['first'])} | {_percent(found['top'])} |\n"
            f"| shares alone | {_percent(found['first_by_share'])} "
            f"| {_percent(found['top_by_share'])} |\n"
            f"| chance | {found['first_by_chance']:.0%} | {found['top_by_chance']:.0%} |\n"
        )
    if "profile" in measured:
        found = measured["profile"].report
        yield f"\n## What a profile is worth\n\n    {measured['profile'].command}\n\n"
        right = "" if found["precision"] is None else f", {_percent(found['precision'])} true"
        held = "" if found["recall"] is None else f"; {_percent(found['recall'])} are in a line"
        yield (
            f"`memory profile` of {found['people']} synthetic people: {found['lines']} lines"
            f"{right}. They told {found['told']} facts on its topics{held}.\n"
        )


def _methods(one: Measured) -> Iterator[str]:
    report = one.report
    yield f"\n    {one.command}\n\n"
    yield (
        "| method | F1 | exact | holds the value | log-likelihood | prompt tokens | GFLOPs "
        "| first token | with kept KV cache | kept per user | write a turn |\n"
        f"|{'---|' * 11}\n"
    )
    for row in report["methods"]:
        recall = _range(row, "value_recall") if row["value_recall"] is not None else ""
        yield (
            f"| {row['method']} | {_range(row, 'f1')} | {row['exact']:.3f} | {recall} "
            f"| {row['log_likelihood']:.2f} | {row['prompt_tokens']:,.0f} "
            f"| {row['flops'] / 1e9:,.1f} | {_ms(row['ttft_ms'])} | {_ms(row['ttft_kept_ms'])} "
            f"| {row['bytes_per_user'] / 1000:,.1f} kB | {row['write_ms_per_turn']:.1f} ms |\n"
        )
    yield f"\n{report['n']} questions by each method."
    swap = report["own_against_swap"]
    if swap is not None:
        difference = swap["f1_difference"]
        yield (
            f" Own minus swap: F1 {difference['mean']:.3f} [{difference['low']:.3f}, "
            f"{difference['high']:.3f}]; the expected answer is likelier under own for "
            f"{_percent(swap['likelier'])}."
        )
    even = report["break_even"]
    if even is not None:
        yield (
            " Writing once is cheaper than reading the history again after "
            f"{_count(even['by_flops'])} questions by FLOPs, {_count(even['by_time'])} by time."
        )
    draw_plane(report, PICTURES / f"{one.name}.png")
    yield f"\n\n![F1 against FLOPs, time and bytes](benchmarks/{one.name}.png)\n"


def _by(report: Report, group: str, title: str) -> Iterator[str]:
    values = report["breakdown"].get(group, {})
    if not values:
        return
    names = [row["method"] for row in report["methods"]]
    yield f"\nF1 by {title}; questions of each are few, which the intervals show:\n\n"
    yield f"| {title} | questions | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}\n"
    for value, rows in values.items():
        known = {row["method"]: row for row in rows}
        shown = [_range(known[name], "f1") if name in known else "" for name in names]
        yield f"| {value} | {rows[0]['questions']} | {' | '.join(shown)} |\n"


def _curves(measured: Mapping[str, Measured]) -> Iterator[str]:
    for name, title, axis, label in (
        ("facts", "Recall by facts in one session", "facts", "facts"),
        ("sessions", "Recall of eight facts by number of sessions", "sessions", "sessions"),
        ("distance", "Recall after further sessions", "distance", "further sessions"),
    ):
        if name not in measured:
            continue
        one = measured[name]
        rows = cells((measured["recall"].report, one.report), axis)
        rows = {row["method"]: rows[row["method"]] for row in one.report["methods"]}
        draw_curve(rows, label, PICTURES / f"{name}.png")
        values = [value for value, _ in next(iter(rows.values()))]
        yield f"\n## {title}\n\n    {one.command}\n    {measured['recall'].command}\n\n"
        yield f"| answers holding the value | {' | '.join(f'{v} {label}' for v in values)} |\n"
        yield f"|{'---|' * (len(values) + 1)}\n"
        for method, points in rows.items():
            shown = " | ".join(_range(row, "value_recall") for _, row in points)
            yield f"| {method} | {shown} |\n"
        # Shares of the little that the others recall say nothing.
        for kept in (kept for kept in one.report["retention"] if kept["method"] == "own"):
            yield (
                f"\n{kept['method']}: after {kept['distance']} more sessions it recalls "
                f"{_percent(kept['share'])} of what it did after {kept['nearest']}.\n"
            )
        yield f"\n![{title}](benchmarks/{name}.png)\n"


def _lengths(measured: Mapping[str, Measured]) -> Iterator[str]:
    rows = []
    by_method = cells((measured["distance"].report,), "distance")
    for number, (further, whole) in enumerate(by_method["history"]):
        own, bm25 = by_method["own"][number][1], by_method["bm25"][number][1]
        rows.append(
            {
                "further": further,
                "tokens": whole["prompt_tokens"],
                "own_ms": own["ttft_ms"],
                "history_ms": whole["ttft_ms"],
                "kept_ms": whole["ttft_kept_ms"],
                "bm25_ms": bm25["ttft_ms"],
                "own_bytes": own["bytes_per_user"],
                "history_bytes": whole["bytes_per_user"],
                "kept_bytes": KEPT_BYTES_PER_TOKEN * whole["prompt_tokens"],
                "bm25_bytes": bm25["bytes_per_user"],
            }
        )
    draw_lengths(rows, PICTURES / "lengths.png")
    yield f"\n## Length of the history\n\n    {measured['distance'].command}\n\n"
    yield (
        "| further sessions | tokens with the whole history | ours | whole history "
        f"| kept KV cache | BM25 |\n|{'---|' * 6}\n"
    )
    for row in rows:
        shown = [
            f"{row[f'{name}_ms']:,.0f} ms, {row[f'{name}_bytes'] / 1000:,.0f} kB"
            for name in ("own", "history", "kept", "bm25")
        ]
        yield f"| {row['further']:.0f} | {row['tokens']:,.0f} | {' | '.join(shown)} |\n"
    yield (
        "\nTime to first token, and bytes kept per user. The KV cache is reckoned at "
        f"{KEPT_BYTES_PER_TOKEN:,} bytes a token; its time is of questions after the first.\n\n"
        "![Time to first token and bytes against the length of the history]"
        "(benchmarks/lengths.png)\n"
    )


def _paper(measured: Mapping[str, Measured]) -> Iterator[str]:
    one = measured.get("dmr", measured["recall"])
    ours = {row["method"]: row for row in one.report["methods"]}
    yield f"\n## Beside the paper\n\n    {one.command}\n\n"
    is_same = "dmr" in measured
    here = "Multi-Session Chat" if is_same else "synthetic people, another task"
    yield (
        "| F1, percent | the paper (Mistral-7B, Multi-Session Chat) "
        f"| SmolLM2-135M, {here} |\n|---|---|---|\n"
    )
    for method, title in (
        ("none", "closed book"),
        ("own", "adapter"),
        ("history", "whole history"),
    ):
        row = ours[method]
        ours_f1 = f"{100 * row['f1']:.1f} [{100 * row['f1_low']:.1f}, {100 * row['f1_high']:.1f}]"
        yield f"| {title} | {PAPER[method]:.1f} | {ours_f1} |\n"
    yield (
        "\nThese are not the same test. The paper's model is fifty times as large, and reads a "
        "long prompt well; ours does not. Where the adapter is above the history here, that says "
        "how weak this base model is with a prompt, not that an adapter holds more than the text. "
        "Our adapter has also learnt the style of the answers (the swap control shows how much of "
        "F1 that is); the paper prints no such control. Questions, prompts and answer lengths "
        "differ: the paper's prompt is unpublished. The paper's FLOPs are an estimate with a "
        "product where a sum belongs and are not repeated; ours are counted.\n"
    )


def _speed(one: Measured) -> Iterator[str]:
    found = one.report
    yield f"\n## Speed\n\n    {one.command}\n\n"
    share = found["encoding_share"]
    yield (
        f"| on {found['threads']} threads | |\n|---|---|\n"
        f"| encoding | {found['encoding_tokens_per_s']:,.0f} tokens/s |\n"
        f"| base model's layers, same tokens | {found['forward_tokens_per_s']:,.0f} tokens/s |\n"
        f"| encoding's share of that (wanted: 0.9) | {share:.2f} |\n"
        f"| read-out of a state, all {found['modules']} modules | {found['readout_ms']:.1f} ms |\n"
        f"| decoding with an adapter | {found['decode_tokens_per_s']:.1f} tokens/s |\n"
        f"| decoding without | {found['decode_plain_tokens_per_s']:.1f} tokens/s |\n"
        f"| `model.generate` | {found['generate_tokens_per_s']:.1f} tokens/s |\n\n"
        "Where the time goes, by `torch.profiler`:\n\n"
        "| phase | the largest operations |\n|---|---|\n"
    )
    for phase in found["profiles"]:
        named = ", ".join(f"{op['name']} {op['share']:.0%}" for op in phase["operations"])
        yield f"| {phase['phase']} | {named} |\n"
    yield (
        "\nWhat was taken out, before and after: [decision 13]"
        "(decisions/0013-where-decoding-spends-its-time.md).\n"
    )


def _growth(one: Measured) -> Iterator[str]:
    yield f"\n## Growth\n\n    {one.command}\n\n"
    yield (
        "| turns | users | a turn until durable | until remembered | first token of a chat "
        f"| prompt tokens | adapter |\n|{'---|' * 7}\n"
    )
    for row in (*one.report["by_turns"], *one.report["by_users"]):
        yield (
            f"| {row['turns']:,} | {row['users']:,} | {row['append_ms']:.1f} ms "
            f"| {row['encode_ms']:,.0f} ms | {row['first_token_ms']:,.0f} ms "
            f"| {row['prompt_tokens']} | {row['adapter_bytes'] / 1000:,.0f} kB |\n"
        )
    yield (
        "\nOne user of the shipped model; the other users have narrow states and fill the database "
        "only. `--turns 10,100,1000,10000 --users 10,1000,100000` is full size.\n"
    )


def _write_samples(results: Path) -> None:
    """A line a question of the first people, with every method's answer."""
    samples: dict[tuple[str, str], dict[str, Any]] = {}
    with results.open(encoding="utf-8") as lines:
        for one in map(json.loads, lines):
            known = {name: one[name] for name in ("sample", "question", "expected")}
            line = samples.setdefault((one["sample"], one["question"]), {**known, "answers": {}})
            scored = {"answer": one["answer"], "f1": round(one["f1"], 3)}
            line["answers"][one["method"]] = scored
    people: Sequence[str] = list(dict.fromkeys(name for name, _ in samples))[:SAMPLED_PEOPLE]
    kept = [json.dumps(line) + "\n" for (name, _), line in samples.items() if name in people]
    SAMPLES.write_text("".join(kept), encoding="utf-8")


def _range(row: Report, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _percent(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.0%} [{interval['low']:.0%}, {interval['high']:.0%}]"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} ms"


def _count(value: float | None) -> str:
    return "no number of" if value is None else f"{value:,.1f}"

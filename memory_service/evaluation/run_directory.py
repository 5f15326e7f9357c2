"""A run directory: every answer as a JSON line, what it was measured with, and what came out.

`results.jsonl` grows as a run goes on; `manifest.json` says what the run is, so that one that was
stopped can go on and nothing else can be mixed into it; `report.json` is the object of `--json`.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from memory_service.errors import InvalidInput, NotFound, StateConflict
from memory_service.evaluation.runner import Result
from memory_service.evaluation.samples import Sample
from memory_service.evaluation.tasks.locality import Drift
from memory_service.evaluation.tasks.provenance import Traced

RESULTS, MANIFEST, REPORT = "results.jsonl", "manifest.json", "report.json"

IDENTITY = ("task", "config", "data", "fingerprint")
"""What must be the same for a run to go on."""

R = TypeVar("R", Result, Drift, Traced)
"""What a line of a run holds: an answer, what an adapter does to a person's exchanges, or what an
answer rests on."""


@dataclass(frozen=True)
class Manifest:
    """What a run is: task and options, digest of its samples, what answered, where, and when."""

    task: str
    config: Mapping[str, object]
    data: str
    fingerprint: str
    commit: str
    machine: Mapping[str, object]
    command: Sequence[str]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def make_manifest(
    task: str, config: Mapping[str, object], samples: Sequence[Sample], fingerprint: str
) -> Manifest:
    """A manifest of a run that begins here and now."""
    return Manifest(
        task=task,
        config=config,
        data=digest_of(samples),
        fingerprint=fingerprint,
        commit=_commit(),
        machine=_machine(),
        command=["memory", *sys.argv[1:]],
    )


def digest_of(samples: Sequence[Sample]) -> str:
    """SHA-256 of all that is remembered and asked."""
    content = json.dumps([asdict(sample) for sample in samples], default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class RunDirectory:
    """Opens or begins a run in a folder.

    Raises:
        StateConflict: the folder holds another run.
        InvalidInput: what it holds is no run, or damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._results = folder / RESULTS
        self._report = folder / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MANIFEST
        if path.exists():
            _check_same(folder, _read_json(path), manifest)
        elif self._results.exists():
            problem = f"holds a {RESULTS} without a {MANIFEST}; name another folder"
            raise InvalidInput("out", str(folder), problem)
        else:
            path.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")

    def done(self, samples: Sequence[Sample]) -> list[Result]:
        """Results of every sample and method that is complete; what is half done is dropped."""
        expected = {sample.id: len(sample.asked) for sample in samples}
        found = self._read(Result)
        counts: dict[tuple[str, str], int] = {}
        for one in found:
            counts[one.sample, one.method] = counts.get((one.sample, one.method), 0) + 1
        kept = [one for one in found if counts[one.sample, one.method] == expected[one.sample]]
        self._replace(kept)
        return kept

    def done_lines(self, kind: type[R]) -> list[R]:
        """Every line that is complete, of a task with one line a person."""
        found = self._read(kind)
        self._replace(found)
        return found

    def write(self, results: Iterable[R]) -> list[R]:
        """Append results as they come, a line at a time, and return them."""
        kept = []
        with self._results.open("a", encoding="utf-8", buffering=1) as file:
            for result in results:
                file.write(_line(result))
                kept.append(result)
        return kept

    def _read(self, kind: type[R]) -> list[R]:
        """All lines that were written whole."""
        if not self._results.exists():
            return []
        lines = self._results.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # killed while it was written
            lines.pop()
        return [_result(line, self._results, kind) for line in lines]

    def _replace(self, results: Sequence[R]) -> None:
        partial = self._results.with_suffix(".partial")
        partial.write_text("".join(_line(one) for one in results), encoding="utf-8")
        partial.replace(self._results)

    def finish(self, report: Mapping[str, object]) -> None:
        """Write what came out."""
        self._report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_run(folder: Path) -> tuple[dict[str, Any], list[Result]]:
    """The manifest and results of a run.

    Raises:
        NotFound: the folder holds none.
        InvalidInput: a file of it is damaged.
    """
    for name in (MANIFEST, RESULTS):
        if not (folder / name).is_file():
            raise NotFound("evaluation run", str(folder), f"it has no {name}")
    with (folder / RESULTS).open(encoding="utf-8") as lines:
        return _read_json(folder / MANIFEST), [
            _result(line, folder / RESULTS, Result) for line in lines
        ]


def pairs_of(results: Iterable[Result]) -> Collection[tuple[str, str]]:
    """Sample and method of results."""
    return {(one.sample, one.method) for one in results}


def _check_same(folder: Path, known: Mapping[str, Any], manifest: Manifest) -> None:
    wanted = json.loads(json.dumps(asdict(manifest)))
    for name in IDENTITY:
        if known.get(name) != wanted[name]:
            raise StateConflict(
                f"evaluation run {folder}",
                f"is another one: its {name} is {known.get(name)} instead of {wanted[name]}; "
                "name another folder",
            )


def _line(result: Result | Drift | Traced) -> str:
    return json.dumps(asdict(result)) + "\n"


def _result(line: str, path: Path, kind: type[R]) -> R:
    try:
        return kind(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InvalidInput(path.name, line[:80], f"is not a result ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(path.name, str(path), f"is damaged ({error})") from None
    return content


def _commit() -> str:
    """The commit of the source tree, with "+changes" where it differs; "" of an installed one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        run = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run([*git, "rev-parse", "HEAD"], **run)  # type: ignore[call-overload]  # noqa: S603, PLW1510
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **run)  # type: ignore[call-overload]  # noqa: S603, PLW1510
    except (OSError, subprocess.SubprocessError):
        return ""
    return str(commit.stdout).strip() + ("+changes" if str(changed.stdout).strip() else "")


def _machine() -> dict[str, object]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""Run the evaluations of the page on benchmarks, draw its figures, and write it (`make bench`).

Every run is a `memory eval` command, kept under `runs/`: what is there already is not answered
again, and someone who doubts a number finds the samples there.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmark_page import PAGE, PICTURES, Measured, write_page

ALL = "none,own,swap,history,history+swap,last_k,bm25,embedding,own+bm25"
GRID = "own,history,bm25"


@dataclass(frozen=True)
class Bench:
    """One command: its name, and its words, in which a data file is called FILE."""

    name: str
    words: tuple[str, ...]
    data: Path | None = None
    has_folder: bool = True

    @property
    def shown(self) -> str:
        """What a reader runs to print the same."""
        out = ("--out", f"runs/{self.name}") if self.has_folder else ()
        return shlex.join(["memory", "eval", *self.words, *out])

    def run(self, runs: Path) -> bool:
        """Measure what is missing; whether all of it is there now."""
        words = [str(self.data) if word == "FILE" else word for word in self.words]
        kept = self._report(runs)
        if kept.exists() and not self.has_folder:  # a folder knows by itself what it holds
            return True
        sys.stderr.write(f"{self.shown}\n")
        out = ["--out", str(runs / self.name)] if self.has_folder else []
        command = [sys.executable, "-m", "memory_cli", "eval", *words, *out, "--json"]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE)  # noqa: S603
        if done.returncode == 0 and not self.has_folder:
            kept.write_bytes(done.stdout)
        return done.returncode == 0

    def read(self, runs: Path) -> Measured | None:
        """What it said; None where it did not run to its end."""
        kept, folder = self._report(runs), runs / self.name
        if not kept.exists():
            return None
        manifest = folder / "manifest.json"
        return Measured(
            name=self.name,
            command=self.shown,
            report=json.loads(kept.read_text(encoding="utf-8")),
            manifest=json.loads(manifest.read_text("utf-8")) if self.has_folder else {},
            results=folder / "results.jsonl",
        )

    def _report(self, runs: Path) -> Path:
        return runs / self.name / "report.json" if self.has_folder else runs / f"{self.name}.json"


def benches(limit: int, dmr: Path | None, membench: Path | None) -> list[Bench]:
    """Every evaluation for which there is data.

    People are shared out so that all of it takes minutes: a method that reads a whole history
    takes seconds a question. The cell of eight facts in one session is measured once, by all
    methods; the curves start from it.
    """
    most = ("--people", str(max(2, limit // 8)))
    people = ("--people", str(max(2, limit // 15)))
    found = [
        Bench("recall", ("recall", *most, "--facts", "8", "--methods", ALL)),
        Bench("facts", ("recall", *people, "--facts", "2,32", "--methods", GRID)),
        Bench(
            "sessions",
            ("recall", *people, "--facts", "8", "--sessions", "4,8", "--methods", GRID),
        ),
        Bench(
            "distance",
            ("recall", *people, "--facts", "8", "--further", "0,10,40", "--methods", GRID),
        ),
        Bench("profile", ("profile", *most), has_folder=False),
        Bench("speed", ("speed",), has_folder=False),
        Bench("growth", ("growth",), has_folder=False),
    ]
    if dmr is not None:
        limited = ("--limit", str(max(2, limit // 4)))
        words = ("dmr", "--data", "FILE", *limited, "--methods", ALL)
        found.insert(0, Bench("dmr", words, dmr))
        traced = ("provenance", "--data", "FILE", "--limit", str(max(2, limit)))
        found.append(Bench("provenance", traced, dmr))
    if membench is not None:
        limited = ("--limit", str(max(2, limit // 6)))
        words = ("membench", "--data", "FILE", *limited, "--methods", "none,own,swap")
        found.append(Bench("membench", words, membench))
    return found


def main() -> int:
    """Run what is missing, then draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=int, default=60, help="how many people, all in all")
    parser.add_argument("--dmr", type=Path, help="dialogues with questions, JSON lines")
    parser.add_argument("--membench", type=Path, help="the same with outdated answers")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept")
    parser.add_argument("--kept", action="store_true", help="run nothing: the page of what is kept")
    given = parser.parse_args()
    given.runs.mkdir(exist_ok=True)
    wanted = benches(given.limit, given.dmr, given.membench)
    is_whole = given.kept or all(bench.run(given.runs) for bench in wanted)
    read = {bench.name: bench.read(given.runs) for bench in wanted}
    measured = {name: one for name, one in read.items() if one is not None}
    if "recall" not in measured:
        return 1
    PICTURES.mkdir(exist_ok=True)
    data = [f"{name.upper()}=FILE" for name in ("dmr", "membench") if name in measured]
    write_page(measured, " ".join(["make bench", f"LIMIT={given.limit}", *data]))
    sys.stderr.write(f"{PAGE} is written\n")
    return 0 if is_whole else 1


if __name__ == "__main__":
    raise SystemExit(main())

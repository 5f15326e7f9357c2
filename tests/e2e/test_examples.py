"""Every example runs, on the model that the settings name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))

EXPECTED = {
    "litellm_provider.py": ["model: memory/", "What is my dog called?", "prompt tokens"],
    "quickstart.py": ["remembered 3 turns as ana@1", "What is my dog called?", "prompt tokens"],
    "follow_one_turn.py": [
        "turn memory_service.domain.turns user: My dog is called Biscuit",
        "-> chunk memory_service.domain.chunks",
        "-> hidden states memory_service.generator.hidden_states layer=2 token=",
        "-> update memory_service.generator.generator layer=2 key=8 column=14 int64",
        "-> state memory_service.generator.state layer=2 key=8 column=14 int64",
        "-> adapter memory_service.generator.readout layer=2 key=8 value=6 float32",
        "-> chat memory_service.inference.local",
    ],
}


def run_example(script: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_an_example_runs_and_prints(script: Path, empty_home: Path) -> None:
    before = {file.name for file in empty_home.iterdir()}
    out = " ".join(run_example(script).split())
    assert all(expected in out for expected in EXPECTED[script.name]), out
    assert {file.name for file in empty_home.iterdir()} == before  # it leaves nothing behind

"""Running `memory` on a tiny model: in this process, or as a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from memory_cli.main import build_app
from memory_service.generator.checkpoint import save_generator
from memory_service.generator.config import EncodingConfig
from tests.helpers.tiny_generator import tiny_config, tiny_generator
from tests.helpers.tiny_model import tiny_llama

ENCODING = EncodingConfig(chunk_tokens=96, dtype="float32", threads=1, grid_exponent=-20)


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that tells why it failed."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def run(*arguments: str, stdin: bytes | str = b"", code: int = 0) -> Outcome:
    """Run a command in this process and expect an exit code."""
    result = CliRunner().invoke(build_app(), list(arguments), input=stdin, prog_name="memory")
    outcome = Outcome(result.exit_code, result.stdout, result.stderr)
    assert outcome.code == code, f"{outcome.code}\n{outcome.out}\n{outcome.err}"
    return outcome


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command as a process with pipes."""
    command = [str(Path(sys.executable).with_name("memory")), *arguments]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(command, **{**pipes, **options})


def make_tiny_model(folder: Path) -> None:
    """Write a base model and a generator that fits it."""
    tiny_llama(folder / "base")
    generator = tiny_generator(tiny_config(encoding=ENCODING))
    save_generator(generator, folder / "generator.safetensors", {}, torch.float32)


def settings_for(model: Path, home: Path) -> Mapping[str, str]:
    """Environment variables that keep a command inside `home`, with a database to migrate."""
    return {
        "MEMORY_SERVICE_DATABASE_URL": f"sqlite:///{home}/memory.db",
        "MEMORY_SERVICE_BASE_MODEL": str(model / "base"),
        "MEMORY_SERVICE_GENERATOR": str(model / "generator.safetensors"),
        "MEMORY_SERVICE_CACHE_DIR": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_STATE_HOME": str(home / "state"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }

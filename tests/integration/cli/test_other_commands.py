"""`memory db`, `memory models`, `memory train`, and what every command shares."""

import json
from pathlib import Path

import pytest

from memory_cli import output
from memory_service import __version__
from memory_service.generator.checkpoint import load_generator
from memory_service.inference import base_models
from memory_service.inference.model_files import BaseModelFiles
from memory_service.training import bench
from memory_service.training.config import Phase, TrainingConfig
from tests.helpers.command_line import ENCODING, run
from tests.helpers.tiny_generator import tiny_config

COMMANDS = ["turns", "users", "adapters", "models", "db", "train"]


def test_the_version() -> None:
    assert run("--version").out == f"{__version__}\n"


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_no_command_shows_the_help(arguments: list[str]) -> None:
    outcome = run(*arguments, code=2)
    assert "Usage: memory" in outcome.err
    assert outcome.out == ""


def test_the_help_ends_with_the_exit_codes() -> None:
    out = " ".join(run("--help").out.split())
    assert "0 success" in out
    assert "130 Ctrl-C" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nonsense"], "No such command 'nonsense'; see `memory --help` [usage]"),
        (["turns", "list"], "Missing argument 'USER'; see `memory turns list --help` [usage]"),
        (["users", "list", "--limit", "0"], "--limit"),
        (["users", "list", "--nonsense"], "--nonsense"),
        (["chat", "ann", "--temperature", "hot"], "--temperature"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], problem: str) -> None:
    assert problem in run(*arguments, code=2).error


def test_a_wrong_setting_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_SERVICE_LOG_LEVEL", "loud")
    assert "MEMORY_SERVICE_LOG_LEVEL" in run("users", "list", code=8).error
    monkeypatch.undo()


def test_a_database_url_never_shows_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_SERVICE_DATABASE_URL", "postgresql://me:xylophone@127.0.0.1:1/x")
    outcome = run("users", "list", code=9)
    assert "xylophone" not in outcome.err
    monkeypatch.setenv("MEMORY_SERVICE_DATABASE_URL", "mysql://me:xylophone@127.0.0.1/x")
    outcome = run("users", "list", code=8)
    assert "xylophone" not in outcome.err


def test_db_upgrade_and_current(empty_home: Path) -> None:
    before = run("db", "current", "--json").json
    assert (before["revision"], before["current"]) == (None, False)
    assert "memory db upgrade" in run("db", "current").err
    assert not (empty_home / "memory.db").exists()
    assert run("db", "upgrade").out == f"from nothing to {before['needed']}\n"
    assert run("db", "upgrade").out == f"already at {before['needed']}\n"
    assert run("db", "current", "--json").json["current"]
    assert run("users", "list", "--json").json == []


def test_models_pull_and_list(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = BaseModelFiles("org/model", empty_home / "m", "d" * 64, 1234)

    def pull(name: str, *, cache_dir: Path, report: base_models.Report) -> BaseModelFiles:
        assert (name, cache_dir) == ("org/model", empty_home / "cache" / "models")
        report("downloading", 0.5)
        report("downloading", 0.6)
        report("warning: another digest", None)
        return files

    monkeypatch.setattr(base_models, "pull", pull)
    outcome = run("models", "pull", "org/model")
    assert outcome.err == "downloading\nwarning: another digest\n"
    assert outcome.out == f"org/model: 1,234 bytes in {empty_home / 'm'}, digest dddddddddddd\n"
    record = {
        "name": "org/model",
        "path": str(empty_home / "m"),
        "digest": "d" * 64,
        "size_bytes": 1234,
    }
    assert run("models", "pull", "org/model", "--json").json == record
    assert run("models", "list", "--json").json == []
    assert "memory models pull" in run("models", "list").err
    monkeypatch.setattr(base_models, "list_pulled", lambda _: [files])
    assert run("models", "list", "--json").json == [record]
    assert "org/model  1,234" in run("models", "list").out


def test_a_name_that_cannot_be_pulled(empty_home: Path) -> None:
    assert (
        "must be smollm2-135m-instruct or a hub id"
        in run("models", "pull", "/some/folder", code=3).error
    )


def write_training(home: Path, base: str, steps: int) -> str:
    config = TrainingConfig(
        base_model=base,
        generator=tiny_config(encoding=ENCODING),
        seed=1,
        steps=steps,
        warmup_steps=1,
        learning_rate=1e-3,
        value_weight=1.0,
        phases=(Phase(steps, 2, 2, (2, 2), (1, 1), (0.0, 0.0)),),
    )
    file = home / "training.json"
    file.write_text(config.to_json())
    return str(file)


def test_training_starts_and_resumes(
    empty_home: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(tiny_model_folder / "base")
    config = write_training(empty_home, base, steps=2)
    assert run("train", "--out", "run", config).out == "run/generator.safetensors\n"
    load_generator(empty_home / "run" / "generator.safetensors")
    for words in (["train"], ["train", "start"]):
        assert "train resume" in run(*words, config, "--out", "run", code=5).error
    kept = json.loads((empty_home / "run" / "config.json").read_text())
    (empty_home / "run" / "config.json").write_text(json.dumps({**kept, "steps": 3}))
    run("train", "resume", "run")
    steps = [
        json.loads(line)["step"]
        for line in (empty_home / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3]


def test_training_is_benched(
    empty_home: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PRODUCT_WIDTH", {"cpu": 256, "cuda": 256})
    config = write_training(empty_home, str(tiny_model_folder / "base"), steps=50)
    before = {*empty_home.iterdir()}
    measured = json.loads(run("train", "bench", config, "--json").out)
    assert {*empty_home.iterdir()} == before
    new, again = measured["steps"]
    assert (new["people"], again["people"]) == ("new", "met before")
    assert new["step_flops"] > again["step_flops"] > 0  # the base model has read them
    for steps in (new, again):
        assert steps["questions_per_s"] * steps["step_s"] == pytest.approx(4)
        used = steps["step_flops"] / steps["step_s"] / measured["matrix_peak"]
        assert steps["peak_share"] == pytest.approx(used)
    table = run("train", "bench", config).out
    assert "share of peak" in table
    assert "met before" in table


def test_training_that_cannot_start_is_named(empty_home: Path) -> None:
    assert (
        "no training config named 'nothing'"
        in run("train", "nothing", "--out", "run", code=4).error
    )
    assert "memory train CONFIG --out DIR" in run("train", "resume", "run", code=4).error
    (empty_home / "bad.json").write_text("{}")
    run("train", "bad.json", "--out", "run", code=8)
    assert not (empty_home / "run").exists()


def test_the_shipped_training_config_is_found_by_name(empty_home: Path) -> None:
    outcome = run("train", "smollm2-135m", "--out", "run", code=4)
    assert "no base model named 'smollm2-135m-instruct'" in outcome.error


def test_a_person_sees_training_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with output.training(40) as show:
        show(1, {"loss": 3.0})
        show(20, {"loss": 2.0, "own": 1.5, "swap gap": 0.25})
    assert capsys.readouterr().err == "step 20/40  loss 2.00  own 1.50  swap gap 0.25\n"

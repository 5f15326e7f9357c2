import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from memory_service.errors import ConfigurationError, NotFound, NumericalError
from memory_service.generator.checkpoint import load_generator, save_generator, training_record
from memory_service.generator.config import SvdConfig
from memory_service.training import loop
from memory_service.training.config import TrainingConfig, load_training_config
from memory_service.training.loop import Progress, Trainer
from tests.helpers.tiny_generator import DOWN_PROJ, tiny_config, tiny_generator
from tests.helpers.tiny_inference import tiny_base
from tests.helpers.tiny_model import tiny_mistral
from tests.helpers.tiny_training import ENCODING, PHASE, small_base, tiny_training, write_dialogues

CONFIG = tiny_training()
ROOT = Path(__file__).parents[3]


def trainer(directory: Path, config: TrainingConfig = CONFIG) -> Trainer:
    return Trainer(config, small_base(), directory)


def ignore(progress: Progress) -> None:
    pass


def stop_at(step: int):
    """Press Ctrl-C when a step is reported."""

    def report(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGINT)

    return report


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def assert_same(first: Trainer, second: Trainer) -> None:
    """Weights and optimizer are equal to the last bit."""
    ours, theirs = first.generator.state_dict(), second.generator.state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())
    assert (first.step, first.questions, first.tokens) == (
        second.step,
        second.questions,
        second.tokens,
    )
    states = [one._optimizer.state_dict()["state"] for one in (first, second)]
    for number, state in states[0].items():
        assert all(value.equal(states[1][number][name]) for name, value in state.items())


# A whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Trainer:
    done = trainer(tmp_path_factory.mktemp("run") / "new")
    assert done.run(ignore) is True
    return done


def test_run_leaves_config_log_checkpoint_and_generator(finished):
    assert sorted(path.name for path in finished.directory.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "generator.safetensors",
        "log.jsonl",
    ]
    assert load_training_config(finished.directory / "config.json") == CONFIG


def test_log_has_one_line_a_step(finished):
    written = lines(finished.directory)
    assert [line["step"] for line in written] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) and line["loss"] > 0 for line in written)
    assert all(line["questions_per_s"] > 0 for line in written)
    assert [line["elapsed_s"] for line in written] == sorted(line["elapsed_s"] for line in written)


def test_learning_rate_warms_up_and_cools_down(finished):
    share = [0.5, 1.0, *(0.05 + 0.95 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4))]
    found = [line["learning_rate"] for line in lines(finished.directory)]
    assert found == pytest.approx([0.01 * one for one in share])


def test_questions_and_tokens_are_counted(finished):
    assert finished.questions == 3 * 2 * 2 + 3 * 2 * 3
    assert finished.tokens > 20 * finished.questions


def test_generator_file_is_the_trained_one_and_says_what_it_saw(finished):
    path = finished.directory / "generator.safetensors"
    loaded, trained = load_generator(path).state_dict(), finished.generator.state_dict()
    assert all(value.equal(trained[name].bfloat16().float()) for name, value in loaded.items())
    record = training_record(path)
    assert record["steps"] == 6
    assert record["questions"] == finished.questions
    assert record["base_model_digest"] == "b" * 64
    assert TrainingConfig.from_json(json.dumps(record["config"])) == CONFIG
    assert [source["licence"] for source in record["data"]] == ["Apache-2.0"]


def test_finished_run_has_nothing_left_to_do(finished, tmp_path):
    again = trainer(finished.directory)
    again.restore()
    again.directory = tmp_path
    assert again.run(ignore) is True
    assert_same(again, finished)
    assert lines(tmp_path) == []


def test_same_seed_same_bits(finished, tmp_path):
    torch.manual_seed(12345)  # what ran before must not matter
    again = trainer(tmp_path)
    again.run(ignore)
    assert_same(again, finished)
    timed = ("questions_per_s", "elapsed_s")
    assert [{k: v for k, v in line.items() if k not in timed} for line in lines(tmp_path)] == [
        {k: v for k, v in line.items() if k not in timed} for line in lines(finished.directory)
    ]


def test_another_seed_other_weights_and_other_data(finished, tmp_path):
    other = trainer(tmp_path, replace(CONFIG, seed=2))
    other.run(ignore)
    assert not other.generator.a_k.equal(finished.generator.a_k)
    assert lines(tmp_path)[0]["loss"] != lines(finished.directory)[0]["loss"]


def test_training_lowers_the_loss(tmp_path):
    config = tiny_training(steps=40, warmup_steps=5, learning_rate=0.03)
    long = trainer(tmp_path, config)
    long.run(ignore)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-5:]) < sum(losses[:5])
    measured = [line for line in lines(tmp_path) if line["own_nll"] is not None]
    assert [line["step"] for line in measured] == [20, 40]
    assert all(math.isfinite(line["swap_gap"]) for line in measured)
    assert all(-1 <= line["readout_cosine"] <= 1 for line in measured)
    for line in measured:
        assert {"question", "value", "said"} == set(line["samples"][0])
        assert len(line["samples"]) == PHASE.people
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


# Stopping and going on


@pytest.mark.parametrize("stopped_at", [1, 3, 5])
def test_resumed_run_equals_an_undisturbed_one(finished, tmp_path, stopped_at):
    first = trainer(tmp_path)
    assert first.run(stop_at(stopped_at)) is False
    assert first.step == stopped_at
    torch.manual_seed(99)
    second = trainer(tmp_path)
    second.restore()
    assert_same(second, first)
    assert second.run(ignore) is True
    assert_same(second, finished)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_killed_run_goes_on_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    first = trainer(tmp_path)
    first.run(stop_at(2))
    monkeypatch.setattr(first, "save", lambda: None)  # killed before the next checkpoint
    first.run(stop_at(4))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    second = trainer(tmp_path)
    second.restore()
    assert second.run(ignore) is True
    assert_same(second, finished)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_mean_of_the_weights_is_measured_exported_and_resumed(finished, tmp_path):
    config = replace(CONFIG, average_decay=0.9)
    whole = trainer(tmp_path / "whole", config)
    expected = whole.generator.a_k.detach().clone()

    def follow(progress: Progress) -> None:
        decay = min(0.9, (1 + progress.step) / (10 + progress.step))
        expected.lerp_(whole.generator.a_k.detach(), 1 - decay)

    whole.run(follow)
    assert_same(whole, finished)  # it changes nothing in training
    exported = load_generator(tmp_path / "whole" / "generator.safetensors").a_k
    assert not exported.equal(finished.generator.a_k.detach().bfloat16().float())
    torch.testing.assert_close(exported, expected.bfloat16().float(), atol=1e-6, rtol=1e-2)
    measured = whole.measure()
    with whole._mean.in_place():
        assert {**measured} == {**whole._measure()}
    assert measured["own_nll"] != whole._measure()["own_nll"]

    trainer(tmp_path / "cut", config).run(stop_at(3))
    second = trainer(tmp_path / "cut", config)
    second.restore()
    second.run(ignore)
    for name, one in second._mean.state_dict().items():
        assert one.equal(whole._mean.state_dict()[name]), name


def test_measuring_does_not_change_the_run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MEASURE_EVERY_STEPS", 1)
    monkeypatch.setattr(loop, "draw_curves", lambda log, picture: None)
    measured = trainer(tmp_path)
    measured.run(ignore)
    assert_same(measured, finished)
    assert all(line["own_nll"] is not None for line in lines(tmp_path))


def test_signal_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer(tmp_path).run(stop_at(1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_second_signal_interrupts_at_once(tmp_path):
    run = trainer(tmp_path)

    def report(progress: Progress) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run.run(report)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_checkpoints_are_written_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    steps = []

    def report(progress: Progress) -> None:
        if progress.step > 1:
            steps.append(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"])

    trainer(tmp_path).run(report)
    assert steps == [1, 2, 3, 4, 5]


CHILD = """
import sys
from pathlib import Path
from tests.helpers.tiny_training import small_base, tiny_training
from memory_service.training.loop import Trainer
trainer = Trainer(tiny_training(steps=100_000), small_base(), Path(sys.argv[1]))
trainer.run(lambda progress: print(progress.step, flush=True))
print("stopped after", trainer.step, flush=True)
"""


def test_sigterm_leaves_a_loadable_checkpoint(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "1\n"
            child.send_signal(signal.SIGTERM)
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == 0, err
    restored = trainer(tmp_path, tiny_training(steps=100_000))
    restored.restore()
    assert out.splitlines()[-1] == f"stopped after {restored.step}"
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, restored.step + 1))
    load_generator(tmp_path / "generator.safetensors")
    assert not list(tmp_path.glob("*.part"))


# What goes wrong


def test_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    trainer(tmp_path).run(stop_at(2))
    before = {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".jsonl"
    }
    run = trainer(tmp_path)
    run.restore()

    def poison(progress: Progress) -> None:
        with torch.no_grad():
            run.generator.b[0][0, 0] = float("nan")

    with pytest.raises(NumericalError, match="step 3"):
        run.run(poison)
    assert run.step == 3
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    again = trainer(tmp_path)
    again.restore()
    assert again.step == 2
    assert again.run(ignore) is True


def test_failed_step_moves_no_weights(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.generator.b[0][0, 0] = float("nan")
    before = run.generator.a_k.clone()
    with pytest.raises(NumericalError):
        run.run(ignore)
    assert run.generator.a_k.equal(before)


def test_base_model_that_returns_no_numbers(tmp_path):
    base = small_base()
    base.model.get_input_embeddings().weight[5:] = float("nan")
    with pytest.raises(NumericalError, match="hidden states"):
        Trainer(CONFIG, base, tmp_path).run(ignore)


def test_restore_without_a_checkpoint(tmp_path):
    with pytest.raises(NotFound, match=r"checkpoint.*memory train"):
        trainer(tmp_path).restore()


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_checkpoint(finished, tmp_path, kept):
    content = (finished.directory / "checkpoint.pt").read_bytes()
    size = kept if isinstance(kept, int) else int(len(content) * kept)
    (tmp_path / "checkpoint.pt").write_bytes(content[:size])
    with pytest.raises(ConfigurationError, match="checkpoint"):
        trainer(tmp_path).restore()


def test_checkpoint_of_another_generator(finished):
    other = tiny_training(generator=tiny_config(modules=(DOWN_PROJ,), encoding=ENCODING))
    with pytest.raises(ConfigurationError, match=r"does not fit config\.json"):
        trainer(finished.directory, other).restore()


def test_disk_that_is_full_keeps_the_old_checkpoint(finished, tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.run(stop_at(1))
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def fail(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# Where it begins, and what it reads


def test_initial_generator_is_trained_further(tmp_path):
    path = tmp_path / "first.safetensors"
    first = tiny_generator(CONFIG.generator, seed=5)
    save_generator(first, path, {}, torch.float32)
    run = trainer(tmp_path / "run", replace(CONFIG, initial=str(path)))
    assert run.generator.a_k.equal(first.a_k)
    run.run(ignore)
    moved = [
        name
        for name, value in run.generator.state_dict().items()
        if not value.equal(first.state_dict()[name])
    ]
    assert moved == list(first.state_dict())


def test_initial_generator_of_another_shape(tmp_path):
    path = tmp_path / "first.safetensors"
    save_generator(tiny_generator(tiny_config()), path, {}, torch.float32)
    with pytest.raises(ConfigurationError, match="another shape"):
        trainer(tmp_path, replace(CONFIG, initial=str(path)))


def test_initial_generator_that_is_not_there(tmp_path):
    with pytest.raises(NotFound):
        trainer(tmp_path, replace(CONFIG, initial=str(tmp_path / "none.safetensors")))


def test_dialogues_are_trained_on_and_named(tmp_path):
    path = write_dialogues(tmp_path / "d.jsonl", 4)
    config = replace(CONFIG, dialogues=(str(path),), dialogue_share=1.0, steps=2)
    trainer(tmp_path / "run", config).run(ignore)
    with safe_open(tmp_path / "run" / "generator.safetensors", framework="pt") as file:
        sources = json.loads(file.metadata()["training"])["data"]
    assert "d.jsonl" in sources[1]["name"]
    assert sources[1]["licence"] == "CC BY 4.0"


def tiny_recipe(name: str, dialogues: Path) -> TrainingConfig:
    """A shipped config with all that it does, for `tiny_model`: smaller in every number."""
    folder = Path(str(resources.files("memory_service"))) / "training" / "configs"
    config = load_training_config(folder / f"{name}.json")
    assert isinstance(config.generator.readout, SvdConfig)
    generator = replace(
        config.generator,
        d_model=32,
        layers=(0, 1),
        d_in=(32,),
        d_out=(32,),
        key_width=8,
        value_width=8,
        readout=SvdConfig(rank=4),
        encoding=replace(config.generator.encoding, chunk_tokens=96, threads=1),
    )
    phases = tuple(
        replace(phase, until_step=2 * number, people=2, questions=2, facts=(1, 2), sessions=(1, 2))
        for number, phase in enumerate(config.phases, start=1)
    )
    return replace(
        config,
        generator=generator,
        steps=2 * len(phases),
        warmup_steps=1,
        phases=phases,
        dialogues=(str(dialogues),),
    )


def test_mistral_recipe_recites_and_completes_then_answers(tmp_path):
    config = tiny_recipe("mistral-7b-instruct", write_dialogues(tmp_path / "d.jsonl", 4))
    run = Trainer(config, tiny_base(tiny_mistral().bfloat16()), tmp_path / "run")
    prompts = []
    batch = run._collator.batch

    def watch(*args):
        made = batch(*args)
        prompts.append([run._tokens.text(line.tolist()) for line in made.asked.ids])
        return made

    run._collator.batch = watch
    before = {name: one.clone() for name, one in run.generator.state_dict().items()}
    assert run.run(stop_at(2)) is False  # where the phases meet
    again = Trainer(config, tiny_base(tiny_mistral().bfloat16()), tmp_path / "run")
    again.restore()
    run.run(ignore)
    assert again.run(ignore) is True
    assert_same(again, run)
    recited = [all("What exactly did" in line for line in step) for step in prompts]
    assert recited == [True, True, False, False]
    written = lines(tmp_path / "run")
    assert [line["value_nll"] is None for line in written[:4]] == [True, True, False, False]
    trained = run.generator.state_dict()
    assert all(not value.equal(before[name]) for name, value in trained.items())
    assert load_generator(tmp_path / "run" / "generator.safetensors").config == config.generator
    record = training_record(tmp_path / "run" / "generator.safetensors")
    assert record["config"]["base_model"] == "mistralai/Mistral-7B-Instruct-v0.2"


def test_evaluation_data_is_refused_before_the_first_step(tmp_path):
    path = write_dialogues(tmp_path / "d.jsonl", 4, split="valid")
    with pytest.raises(ConfigurationError, match="evaluation"):
        trainer(tmp_path / "run", replace(CONFIG, dialogues=(str(path),), dialogue_share=0.5))
    assert not (tmp_path / "run").exists()


def test_every_step_has_its_own_people(tmp_path):
    run = trainer(tmp_path)
    seen = []
    make = run._make

    def watch(rng, step, count):
        episodes = make(rng, step, count)
        seen.append([turn.text for episode in episodes for turn in episode.turns])
        return episodes

    run._make = watch
    run.run(ignore)
    assert len({tuple(texts) for texts in seen}) == len(seen) == 6

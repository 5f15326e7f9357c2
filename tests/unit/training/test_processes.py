"""Two real processes that share a run's steps on the CPU, beside one that does all of it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pytest
import torch

from memory_service.errors import ConfigurationError
from memory_service.training.data import Collator
from memory_service.training.loop import Trainer
from memory_service.training.people import Split, make_episode
from memory_service.training.processes import Processes
from tests.helpers.tiny_training import small_base, tiny_training

ROOT = Path(__file__).parents[3]
PEOPLE = 3  # two for one process, one for the other
CHILD = """
import sys
from pathlib import Path
import torch
from tests.unit.training.test_processes import shared_training
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
trainer = shared_training(folder, steps)
if steps == 1:  # leave the gradients as they were added up
    torch.nn.utils.clip_grad_norm_ = lambda parameters, most: torch.tensor(1.0)
trainer.run(lambda progress: print(progress.step, flush=True))
gradients = [one.grad for one in trainer.generator.parameters()]
weights = [one.detach() for one in trainer.generator.parameters()]
counts = [trainer.step, trainer.questions, trainer.tokens]
torch.save([gradients, weights, counts], folder / f"end-{trainer._processes.index}.pt")
"""


def shared_training(folder: Path, steps: int) -> Trainer:
    """A run that also asks what must not change; its first step is the same however long it is."""
    config = tiny_training(
        objectives={"questions": 1.0, "recitation": 1.0, "locality": 1.0}, drift_weight=2.0
    )
    phases = json.loads(config.to_json())["phases"]
    content = json.loads(config.to_json()) | {
        "steps": steps,
        "phases": [{**phase, "people": PEOPLE} for phase in phases],
    }
    return Trainer(type(config).from_json(json.dumps(content)), small_base(), folder)


def start_two(stack: ExitStack, folder: Path, steps: int) -> list[subprocess.Popen[str]]:
    """As `torchrun` does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in ("0", "1"):
        child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(folder), str(steps)],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "ACCELERATE_USE_CPU": "true",
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": "2",
                    "LOCAL_WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(child.kill)
        children.append(child)
    return children


def finish(children: list[subprocess.Popen[str]]) -> list[str]:
    """What each printed."""
    said = []
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        said.append(out)
    return said


def ends(folder: Path) -> list[list[list[torch.Tensor]]]:
    return [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path, monkeypatch):
    with ExitStack() as stack:
        said = finish(start_two(stack, tmp_path / "two", 1))
    assert said == ["1\n", ""]  # the second one reports nothing
    first, second = ends(tmp_path / "two")
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, most: torch.tensor(1.0)
    )
    alone = shared_training(tmp_path / "one", 1)
    alone.run(lambda progress: None)
    gradients = [one.grad.cpu() for one in alone.generator.parameters()]
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)
    for mine, others, whole in zip(first[0], second[0], gradients, strict=True):
        assert mine.equal(others)
        torch.testing.assert_close(mine, whole, atol=1e-6, rtol=1e-4)
    assert all(mine.equal(others) for mine, others in zip(first[1], second[1], strict=True))
    assert first[2] == second[2] == [alone.step, alone.questions, alone.tokens]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    assert [len(log) for log in logs] == [1, 1]
    for field in ("loss", "value_nll", "drift"):
        assert logs[0][0][field] == pytest.approx(logs[1][0][field], rel=1e-5)
    assert logs[0][0]["drift"] > 0


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    with ExitStack() as stack:
        children = start_two(stack, tmp_path, 100_000)
        assert children[0].stdout is not None
        assert children[0].stdout.readline() == "1\n"
        children[1].send_signal(signal.SIGTERM)
        finish(children)
    first, second = ends(tmp_path)
    assert first[2] == second[2]
    assert all(mine.equal(others) for mine, others in zip(first[1], second[1], strict=True))
    alone = shared_training(tmp_path, 100_000)  # one process goes on where two stopped
    alone.restore()
    assert [alone.step, alone.questions, alone.tokens] == first[2]
    for found, kept in zip(alone.generator.parameters(), first[1], strict=True):
        assert found.detach().cpu().equal(kept)


# Shares


def process(index: int, count: int) -> Processes:
    made = Processes.__new__(Processes)
    made.index, made.count = index, count
    return made


def test_every_person_is_one_processs():
    for count in (1, 2, 3, 8):
        shares = [list(process(index, count).share(11)) for index in range(count)]
        assert sorted(chain.from_iterable(shares)) == list(range(11))


def test_more_processes_than_people():
    with pytest.raises(ConfigurationError, match="2 people for 3 processes"):
        process(0, 3).share(2)


def test_what_people_are_asked_does_not_depend_on_who_computes_it():
    episodes = [make_episode(random.Random(seed), Split.TRAIN, facts=3) for seed in range(4)]
    weights = {"questions": 1.0, "reconstruction": 1.0, "chatter": 1.0}
    collator = Collator(small_base(), tiny_training(objectives=weights))
    whole = collator.batch(episodes, 3, random.Random(5))
    parts = [collator.batch(episodes, 3, random.Random(5), mine) for mine in ([0, 2], [1, 3])]
    for part, mine in zip(parts, ([0, 2], [1, 3]), strict=True):
        assert part.chunks == tuple(whole.chunks[index] for index in mine)
        for name in ("asked", "unrelated"):
            width = getattr(part, name).ids.shape[1]
            ids = getattr(whole, name).ids
            assert getattr(part, name).ids.equal(ids[mine, :width])
            assert not ids[mine, width:].any()
    assert sum(part.questions for part in parts) == whole.questions
    assert sum(part.tokens for part in parts) == whole.tokens

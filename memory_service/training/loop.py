"""The training loop: resumable, deterministic under a seed, watched while it runs."""

import json
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import structlog
import torch

from memory_service.errors import ConfigurationError, NotFound, NumericalError
from memory_service.generator.checkpoint import load_generator, save_generator
from memory_service.generator.generator import Generator
from memory_service.generator.injection import Injector
from memory_service.inference.base_models import BaseModel
from memory_service.inference.tokens import Tokens
from memory_service.training.average import RunningMean
from memory_service.training.config import TrainingConfig
from memory_service.training.curves import draw_curves
from memory_service.training.data import (
    Batch,
    Collator,
    MakeEpisodes,
    dialogue_source,
    mixed,
    people_source,
    swap_pairs,
)
from memory_service.training.frozen import FrozenBase
from memory_service.training.initial import tie_to_base_model
from memory_service.training.losses import Answers, read_outs
from memory_service.training.people import Split
from memory_service.training.processes import Processes
from memory_service.training.samples import SampleAnswer, answer_sample

CHECKPOINT_EVERY_S = 600.0
MEASURE_EVERY_STEPS = 20
SAMPLE_ANSWERS = 3
SCALAR_RATE_SHARE = 10.0
FINAL_RATE = 0.05
"""Learning rate at the end of the cosine, as a share of the peak."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Progress:
    """One line of the log: losses in nats, time in seconds.

    `value_nll` is None where no answer of the step carried a fact.
    """

    step: int
    loss: float
    value_nll: float | None
    drift: float
    learning_rate: float
    questions_per_s: float
    elapsed_s: float
    own_nll: float | None = None
    own_recalled: float | None = None
    swap_recalled: float | None = None
    swap_gap: float | None = None
    readout_cosine: float | None = None
    samples: tuple[SampleAnswer, ...] = ()


class Trainer:
    """One training run in a directory.

    There are `config.json`, `log.jsonl`, `curves.png`, `checkpoint.pt` and `generator.safetensors`.

    Every step's data is a function of (seed, step), so a resumed run sees what an undisturbed one
    would have seen. Several processes, where the run was launched with them, share a step's people;
    the first one alone writes and reports.
    """

    def __init__(self, config: TrainingConfig, base: BaseModel, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self._base = base
        self._processes = Processes()
        base.model.to(self._processes.device)
        torch.manual_seed(config.seed)
        self.generator = self._initial_generator()
        self._processes.follow_the_first(self.generator)
        self._injector = Injector(base.model, self.generator)
        self._tokens = Tokens(base)
        self._collator = Collator(base, config)
        self._make = self._source()
        self._frozen = FrozenBase(self._injector, directory)
        self._answers = Answers(self._injector, self._frozen)
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(self.generator), lr=config.learning_rate, betas=(0.9, 0.95)
        )
        decay = config.average_decay
        self._mean = RunningMean(self.generator, decay) if decay else None
        self.step = 0
        self.questions = 0
        self.tokens = 0

    def run(self, report: Callable[[Progress], None]) -> bool:
        """Train to the end, or until Ctrl-C or SIGTERM; True when it is finished.

        A checkpoint is written every ten minutes, at the end and when stopped.

        Raises:
            NumericalError: the loss became NaN or Inf; the last checkpoint is still good.
            OSError: a checkpoint cannot be written.
        """
        started = saved = time.monotonic()
        with _stop_requests() as stop, self._log() as write:
            while self.step < self.config.steps and not self._any(bool(stop)):
                progress = self._train_step(started)
                if not self._processes.is_first:
                    continue
                write(progress)
                report(progress)
                if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        if self._processes.is_first:
            self.save()
        return self.step >= self.config.steps

    @contextmanager
    def _log(self) -> Iterator[Callable[[Progress], None]]:
        """Write config and log; what is called with a step's progress adds its line."""
        if not self._processes.is_first:
            yield lambda progress: None
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "config.json").write_text(self.config.to_json())
        path = self.directory / "log.jsonl"
        with path.open("a") as file:

            def write(progress: Progress) -> None:
                file.write(json.dumps(asdict(progress)) + "\n")
                file.flush()
                if progress.own_nll is not None:
                    draw_curves(path, self.directory / "curves.png")

            yield write

    def _any(self, answer: bool) -> bool:
        """Whether any process says so: all must stop after the same step."""
        return self._processes.sums(float(answer))[0] > 0

    def save(self) -> None:
        """Write the resumable checkpoint and the generator file, each whole or not at all."""
        path = self.directory / "checkpoint.pt"
        unfinished = path.with_suffix(".part")
        torch.save(
            {
                "step": self.step,
                "questions": self.questions,
                "tokens": self.tokens,
                "generator": self.generator.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "mean": {} if self._mean is None else self._mean.state_dict(),
            },
            unfinished,
        )
        unfinished.replace(path)
        record = {
            "config": json.loads(self.config.to_json()),
            "steps": self.step,
            "questions": self.questions,
            "tokens": self.tokens,
            "base_model_digest": self._base.digest,
            "data": _sources(self.config),
        }
        with self._best_weights():
            save_generator(
                self.generator, self.directory / "generator.safetensors", record, torch.bfloat16
            )

    def restore(self) -> None:
        """Continue from the directory's checkpoint; what the log says beyond it is taken out.

        Raises:
            NotFound: there is none.
            ConfigurationError: it is damaged, or belongs to another generator.
        """
        path = self.directory / "checkpoint.pt"
        if not path.exists():
            raise NotFound(
                "checkpoint", str(path), "start the run with `memory train CONFIG --out DIR`"
            )
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            self.generator.load_state_dict(content["generator"])
            self._optimizer.load_state_dict(content["optimizer"])
            if self._mean is not None:
                self._mean.load_state_dict(content["mean"])
            self.step = content["step"]
            self.questions = content["questions"]
            self.tokens = content["tokens"]
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
            raise ConfigurationError(
                "checkpoint",
                f"{path} is damaged or does not fit config.json ({error})",
                "start a new run",
            ) from error
        if self._processes.is_first:
            _cut_log(self.directory / "log.jsonl", self.step)

    def _train_step(self, started: float) -> Progress:
        begun = time.monotonic()
        rng = random.Random(f"{self.config.seed}-train-{self.step}")  # noqa: S311  # not security
        phase = self.config.phase(self.step)
        episodes = self._make(rng, self.step, phase.people)
        asked_of_each = phase.people * phase.questions // len(episodes)
        mine = self._processes.share(len(episodes))
        weights = self.config.objectives_at(self.step)
        batch = self._collator.batch(episodes, asked_of_each, rng, mine, weights)
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._add_gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise NumericalError("gradient", f"is not finite at step {self.step}")
        self._optimizer.step()
        self.step += 1
        if self._mean is not None:
            self._mean.add(self.step)
        questions, tokens = self._processes.sums(batch.questions, batch.tokens)
        self.questions += int(questions)
        self.tokens += int(tokens)
        took = time.monotonic() - begun
        is_measured = self._processes.is_first and self.step % MEASURE_EVERY_STEPS == 0
        measured = self.measure() if is_measured else {}
        return Progress(
            step=self.step,
            learning_rate=rate,
            questions_per_s=questions / took,
            elapsed_s=time.monotonic() - started,
            **losses,
            **measured,
        )

    def _add_gradients(self, batch: Batch) -> dict[str, Any]:
        """Gradients of the whole step, on every process, and its losses.

        A loss is a mean over tokens: each process's counts by its share of them, so that the sum is
        what one process would have computed of all.
        """
        tokens = [
            float(batch.asked.weights.sum()),
            float(batch.asked.is_value.sum()),
            0.0 if batch.unrelated is None else float((batch.unrelated.weights > 0).sum()),
        ]
        everyones = self._processes.sums(*tokens)
        asked, value, unrelated = (
            mine / whole if whole else 0.0 for mine, whole in zip(tokens, everyones, strict=True)
        )
        readouts = read_outs(self._frozen, self.generator, batch)
        result = self._answers.loss(readouts, batch.asked)
        loss = result.loss * asked
        drift = 0.0
        if batch.unrelated is not None:
            changed = self._answers.drift(readouts, batch.unrelated) * unrelated
            loss = loss + self.config.drift_weight * changed
            drift = float(changed.detach())
        torch.autograd.backward(loss)
        self._processes.add_gradients(self.generator)
        answers, values, drift = self._processes.sums(
            float(result.loss.detach()) * asked, result.value_nll * value if value else 0.0, drift
        )
        return {"loss": answers, "value_nll": values if everyones[1] else None, "drift": drift}

    def measure(self) -> dict[str, Any]:
        """Value NLL of fresh people under their own adapter, and how much worse a twin's is.

        With the mean of the weights, where one is kept.
        """
        with self._best_weights():
            return self._measure()

    def _best_weights(self) -> AbstractContextManager[None]:
        """Let the generator hold what is exported."""
        return nullcontext() if self._mean is None else self._mean.in_place()

    @torch.no_grad()
    def _measure(self) -> dict[str, Any]:
        rng = random.Random(f"{self.config.seed}-measure-{self.step}")  # noqa: S311
        own, other = swap_pairs(self.config, rng, self.step)
        questions = self.config.phase(self.step).questions
        batch = self._collator.questions(own, questions, rng)
        twins = self._collator.questions(other, questions, rng)
        mine = read_outs(self._frozen, self.generator, batch)
        theirs = read_outs(self._frozen, self.generator, twins)
        told = self._answers.loss(mine, batch.asked)
        swapped = self._answers.loss(theirs, batch.asked)
        cosine = torch.nn.functional.cosine_similarity(mine.flatten(1), theirs.flatten(1)).mean()
        samples = [
            answer_sample(self._injector, self._tokens, readout.unsqueeze(0), episode.questions[0])
            for readout, episode in zip(mine[:SAMPLE_ANSWERS], own, strict=False)
        ]
        return {
            "samples": tuple(samples),
            "own_nll": told.value_nll,
            "swap_gap": swapped.value_nll - told.value_nll,
            "own_recalled": told.recalled,
            "swap_recalled": swapped.recalled,
            "readout_cosine": float(cosine),
        }

    def _learning_rate(self) -> float:
        config = self.config
        if self.step < config.warmup_steps:
            return config.learning_rate * (self.step + 1) / config.warmup_steps
        done = (self.step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return config.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)

    def _initial_generator(self) -> Generator:
        if self.config.initial is None:
            untrained = Generator(self.config.generator).to(self._processes.device)
            tie_to_base_model(untrained, self._base)
            return untrained
        generator = load_generator(Path(self.config.initial))
        if generator.config != self.config.generator:
            raise ConfigurationError(
                "initial", f"{self.config.initial} has another shape", "use its own config"
            )
        generator.train().requires_grad_(True)
        return generator.to(self._processes.device)

    def _source(self) -> MakeEpisodes:
        people = people_source(self.config, Split.TRAIN)
        share = self.config.dialogue_share
        if not self.config.dialogues or share == 0:
            return people
        paths = [Path(path) for path in self.config.dialogues]
        return mixed([(people, 1 - share), (dialogue_source(self.config, paths), share)])


def _parameter_groups(generator: Generator) -> list[dict[str, Any]]:
    """Matrices, and the read-out's few scalars, whose gradients are as large but rates too small.

    A lambda is learnt as its logarithm: at a matrix's rate it would hardly move in a run.
    """
    scalars = [one for one in generator.parameters() if one.ndim == 1]
    matrices = [one for one in generator.parameters() if one.ndim > 1]
    return [
        {"params": matrices, "rate_share": 1.0, "weight_decay": 0.0},
        {"params": scalars, "rate_share": SCALAR_RATE_SHARE, "weight_decay": 0.0},
    ]


def _cut_log(path: Path, steps: int) -> None:
    """Drop lines of steps that are done again: a killed run logs more than it keeps."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= steps]
    if kept != lines:
        unfinished = path.with_suffix(".part")
        unfinished.write_text("".join(kept), encoding="utf-8")
        unfinished.replace(path)


def _sources(config: TrainingConfig) -> list[dict[str, str]]:
    """What the weights saw, for their metadata."""
    sources = [
        {
            "name": "synthetic people",
            "source": "memory_service/training/people.py",
            "licence": "Apache-2.0",
        }
    ]
    if config.dialogues and config.dialogue_share:
        names = ", ".join(Path(path).name for path in config.dialogues)
        sources += [
            {
                "name": f"real dialogues ({names})",
                "source": "Multi-Session Chat, test split (Xu et al. 2021, ParlAI); "
                "Synthetic-Persona-Chat (Jandaghi et al. 2023)",
                "licence": "CC BY 4.0",
            },
            {
                "name": "questions about them",
                "source": "memory_service/training/questions, written for this project",
                "licence": "Apache-2.0",
            },
        ]
    return sources


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying; a second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        log.info("training_stops_after_this_step", signal=number)
        received.append(number)

    stopping = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, receive) for number in stopping}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

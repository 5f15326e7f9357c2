"""How fast a training config is on this machine, and how much of the machine that uses."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from memory_service.training.config import TrainingConfig
from memory_service.training.loop import Progress, Trainer

STEPS = 3
"""Timed twice: with new people, and with the same ones, whose texts the base model has read."""

PRODUCT_WIDTH = {"cpu": 2048, "cuda": 8192}
PRODUCTS = 7


@dataclass(frozen=True)
class Speed:
    """What a step costs: medians of a few; `peak_share` is the share of `matrix_peak`."""

    people: str
    questions_per_s: float
    step_s: float
    step_flops: float
    peak_share: float


def bench_config(config: TrainingConfig) -> TrainingConfig:
    """The steps that most of a run consists of, on synthetic people: they need no files."""
    last = config.phases[-1]
    warmup = min(config.warmup_steps, STEPS - 1)
    return replace(config, steps=STEPS, warmup_steps=warmup, phases=(last,), dialogues=())


def measure_speed(make: Callable[[Path], Trainer], folder: Path, peak: float) -> list[Speed]:
    """Time a trainer of `bench_config` in its folder, then count another's operations.

    Both do the same steps; the counter would slow down what is timed. It sees every product that
    the modules run, forwards and backwards; what is no product counts nothing, as everywhere.

    Raises:
        KeyboardInterrupt: it was stopped.
        NumericalError: a loss became NaN or Inf.
    """
    timed, counted = make(folder / "timed"), make(folder / "counted")
    speeds = []
    for people in ("new", "met before"):
        steps = _run(timed)
        with FlopCounterMode(display=False) as counter:
            _run(counted)
        step_flops = counter.get_total_flops() / STEPS
        questions = timed.questions / STEPS
        step_s = questions / median(one.questions_per_s for one in steps)
        share = step_flops / step_s / peak
        speeds.append(Speed(people, questions / step_s, step_s, step_flops, share))
        for trainer in (timed, counted):
            trainer.step = trainer.questions = 0  # the same people again
    return speeds


def matrix_peak(device: torch.device) -> float:
    """Operations a second in a large bf16 product: the best of several."""
    width = PRODUCT_WIDTH[device.type]
    left, right = (torch.randn(width, width, device=device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(PRODUCTS):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return float(2 * width**3 / min(seconds))


def _run(trainer: Trainer) -> list[Progress]:
    steps: list[Progress] = []
    if not trainer.run(steps.append):
        raise KeyboardInterrupt
    return steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memory_service.training import bench
from memory_service.training.bench import STEPS, bench_config, matrix_peak, measure_speed
from memory_service.training.loop import Trainer
from tests.helpers.tiny_training import small_base, tiny_training


def test_bench_asks_what_most_of_a_run_asks_and_needs_no_files():
    config = tiny_training(warmup_steps=100, dialogues=("none.jsonl",), dialogue_share=0.5)
    made = bench_config(config)
    assert made.phases == config.phases[-1:]
    assert (made.steps, made.dialogues) == (STEPS, ())
    assert made.warmup_steps < STEPS


def test_operations_are_those_of_the_same_steps(tmp_path):
    config = bench_config(tiny_training())
    speeds = measure_speed(
        lambda folder: Trainer(config, small_base(), folder), tmp_path, peak=1e12
    )
    alone = Trainer(config, small_base(), tmp_path / "alone")
    with FlopCounterMode(display=False) as counter:
        alone.run(lambda progress: None)
    assert speeds[0].step_flops == counter.get_total_flops() / STEPS
    assert speeds[0].step_flops > speeds[1].step_flops > 0
    assert all(speed.peak_share < 1 for speed in speeds)


def test_a_stopped_bench_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda self, report: False)
    with pytest.raises(KeyboardInterrupt):
        measure_speed(
            lambda folder: Trainer(bench_config(tiny_training()), small_base(), folder),
            tmp_path,
            peak=1e12,
        )


def test_peak_is_the_best_of_several_products(monkeypatch):
    monkeypatch.setattr(bench, "PRODUCT_WIDTH", {"cpu": 128, "cuda": 128})
    seconds = [4.0, 2.0, 8.0, 2.5, 3.0, 4.0, 5.0]
    ticks = [
        tick
        for number, took in enumerate(seconds)
        for tick in (100.0 * number, 100.0 * number + took)
    ]
    monkeypatch.setattr(bench.time, "perf_counter", iter(ticks).__next__)
    assert matrix_peak(torch.device("cpu")) == 2 * 128**3 / 2.0

import json

import pytest
from matplotlib.axes import Axes

from memory_service.training.curves import SMOOTHED_STEPS, draw_curves


def write_log(path, steps):
    with path.open("w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "loss": 100.0 if step == steps else 1.0, "value_nll": 2.0}
            measured = {"own_nll": 1.5, "own_recalled": 0.5, "swap_recalled": 0.1}
            measured |= {"swap_gap": 3.0, "readout_cosine": 0.2}
            if step % 20:
                measured = dict.fromkeys(measured)
            file.write(json.dumps(line | measured) + "\n")


@pytest.fixture
def plotted(monkeypatch):
    seen = {}
    plot = Axes.plot

    def watch(axes, steps, values, *, label):
        seen[label] = (list(steps), list(values))
        return plot(axes, steps, values, label=label)

    monkeypatch.setattr(Axes, "plot", watch)
    return seen


def test_curves_show_what_the_log_says(tmp_path, plotted):
    write_log(tmp_path / "log.jsonl", 40)
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert plotted["swap gap"] == ([20, 40], [3.0, 3.0])
    assert plotted["own recalled"] == ([20, 40], [0.5, 0.5])
    assert plotted["readout cosine"] == ([20, 40], [0.2, 0.2])
    steps, losses = plotted["loss"]
    assert steps == list(range(1, 41))
    assert losses[:39] == [1.0] * 39
    assert losses[39] == pytest.approx((100 + SMOOTHED_STEPS - 1) / SMOOTHED_STEPS)
    assert not list(tmp_path.glob("*.part"))


def test_a_log_without_measurements_is_drawn_too(tmp_path, plotted):
    write_log(tmp_path / "log.jsonl", 3)
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert set(plotted) == {"loss", "value nll"}

"""`memory train`: start and resume a generator's training."""

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from memory_cli import interrupts, output
from memory_cli.options import Json
from memory_service.bootstrap import make_trainer
from memory_service.errors import NotFound, StateConflict
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.training.loop import Progress


class _Training(TyperGroup):
    """`memory train CONFIG` is `memory train start CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["start", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Training,
    help="Train a generator: memory train CONFIG --out DIR; memory train resume DIR.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("start")
def start_training(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A JSON file, or the name of one in the package."),
    ],
    directory: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where checkpoints and the log go.")
    ],
) -> None:
    """Train a generator; Ctrl-C stops after the step and keeps a checkpoint.

    The word start may be left out: memory train CONFIG --out DIR.
    """
    if (directory / "checkpoint.pt").exists():
        raise StateConflict(
            str(directory), "a run is there already; use `memory train resume`, or another folder"
        )
    _train(_config_path(config), directory, resume=False)


@app.command("resume")
def resume_training(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the run.")],
) -> None:
    """Continue a run from its last checkpoint."""
    if not (directory / "config.json").exists():
        raise NotFound(
            "training run", str(directory), "start one with `memory train CONFIG --out DIR`"
        )
    _train(directory / "config.json", directory, resume=True)


@app.command("bench")
def bench_training(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A JSON file, or the name of one in the package."),
    ],
    as_json: Json = False,
) -> None:
    """Measure a config's questions per second, and the share of the machine's matrix peak.

    With synthetic people, in the steps of the last phase; nothing is kept. The peak is what a large
    bf16 product reaches on this machine in the same minute.
    """
    from memory_service.training.config import load_training_config

    settings = read_settings()
    chosen = load_training_config(_config_path(config))
    with output.waiting("loading torch") as doing, TemporaryDirectory() as folder:
        from memory_service.training.bench import bench_config, matrix_peak, measure_speed
        from memory_service.training.processes import Processes

        device = Processes().device
        doing("measuring a large product")
        peak = matrix_peak(device)
        wanted = bench_config(chosen)
        speeds = measure_speed(
            lambda path: make_trainer(settings, wanted, path, doing), Path(folder), peak
        )
    if as_json:
        steps = [asdict(speed) for speed in speeds]
        output.show_json({"device": str(device), "matrix_peak": peak, "steps": steps})
        return
    output.show_table(
        ["people", "questions/s ", "s/step ", "GFLOP/step ", "share of peak "],
        [
            [
                one.people,
                f"{one.questions_per_s:.1f}",
                f"{one.step_s:.2f}",
                f"{one.step_flops / 1e9:,.0f}",
                f"{one.peak_share:.1%}",
            ]
            for one in speeds
        ],
        title=f"{config} on {device}: bf16 products reach {peak / 1e12:.2f} TFLOP/s",
    )


def _train(config_path: Path, directory: Path, *, resume: bool) -> None:
    from memory_service.logs import configure_logs
    from memory_service.training.config import load_training_config

    settings = read_settings()
    configure_logs(settings.log_format, settings.log_level)
    config = load_training_config(config_path)
    with output.waiting("starting") as doing:
        trainer = make_trainer(settings, config, directory, doing)
        if resume:
            trainer.restore()
    with output.training(config.steps) as show:

        def report(progress: "Progress") -> None:
            show(progress.step, _numbers(progress))
            for sample in progress.samples:
                output.note(f"  {sample.question}  [{sample.value}]  {sample.said}", "dim")

        finished = trainer.run(report)
    if not finished:
        stopped = (
            f"stopped at step {trainer.step:,} of {config.steps:,}; "
            f"`memory train resume {directory}` continues"
        )
        with interrupts.told(lambda: stopped):
            raise KeyboardInterrupt
    output.show_line(str(directory / "generator.safetensors"))


def _numbers(progress: "Progress") -> dict[str, float]:
    """What a person watches: losses in nats."""
    numbers = {"loss": progress.loss}
    if progress.own_nll is not None and progress.swap_gap is not None:
        numbers |= {"own": progress.own_nll, "swap gap": progress.swap_gap}
    if progress.own_recalled is not None:
        numbers["recall"] = progress.own_recalled
    return numbers


def _config_path(name: str) -> Path:
    """A config by path, or by name among those of the package."""
    shipped = Path(str(resources.files("memory_service"))) / "training" / "configs"
    if not Path(name).exists() and (shipped / f"{name}.json").is_file():
        return shipped / f"{name}.json"
    return Path(name)

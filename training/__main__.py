"""Train a model: `python -m training RECIPE.toml [section.key=value ...]`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from carousel.models.errors import CarouselError
from carousel.models.nn.threads import limit_threads
from carousel.training.gradients.trace import reach
from carousel.training.recipe import load_recipe
from carousel.training.run import TrainingRun
from carousel.training.task import Evaluation
from carousel.training.trainer import BEST, Progress

SECONDS_BETWEEN_LINES_OF_A_FILE = 30.0
LOGGED_LAGS = (0, *(2**power for power in range(11)))


class Console:
    """A progress bar over the whole run, one line per validation, and the same figures for TensorBoard."""

    def __init__(self, run: TrainingRun) -> None:
        task, progress = run.task, run.trainer.progress
        self._epochs = run.recipe.schedule.epochs
        self._tokens_per_window = task.tokens_per_window
        self._task, self._look_every = task, run.recipe.run.log_gradients_every
        print(task.description)
        print(f"run directory {run.directory}; watch it with: tensorboard --logdir {run.directory.parent}")
        if progress.step:
            print(f"resuming in epoch {progress.epoch + 1}, after {progress.step:,} steps")
        sys.stdout.flush()
        # What an interrupted run logged after its last checkpoint is logged again: purge it.
        self._interrupted = False
        self._writer = SummaryWriter(run.directory, purge_step=progress.step + 1)
        self._bar: tqdm[NoReturn] = tqdm(
            desc=f"epoch {progress.epoch + 1}/{self._epochs}",
            total=self._epochs * task.windows_per_epoch * task.tokens_per_window,
            initial=progress.step * task.tokens_per_window,
            unit=task.unit,
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES_OF_A_FILE,
        )

    def on_window(self, progress: Progress, loss: float, learning_rate: float) -> None:
        """Move the bar on."""
        self._bar.set_description(f"epoch {progress.epoch + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix(loss=f"{progress.loss_sum / progress.window:.4f}", refresh=False)
        self._bar.update(self._tokens_per_window)
        self._writer.add_scalar("train/loss", loss, progress.step)
        self._writer.add_scalar("train/learning_rate", learning_rate, progress.step)
        if self._look_every and progress.step % self._look_every == 0:
            for name, norms in reach(self._task, next(iter(self._task.windows(0, 0)))).norms.items():
                for lag in (lag for lag in LOGGED_LAGS if lag < len(norms)):
                    self._writer.add_scalar(f"gradients/{name}/lag_{lag}", norms[lag], progress.step)
        if self._interrupted:
            raise KeyboardInterrupt

    def interrupt(self) -> None:
        """End the run at the present window: in the midst of one, an exception could leave TensorBoard's locks held."""
        self._interrupted = True

    def on_validation(self, progress: Progress, train_loss: float, evaluation: Evaluation, is_best: bool) -> None:
        """Print the figures above the bar."""
        mark = " (best)" if is_best else ""
        with tqdm.external_write_mode(file=sys.stdout):
            line = f"epoch {progress.epoch}: train {train_loss:.4f}; validation {evaluation.summary}{mark}"
            print(line, flush=True)
        for name, value in evaluation.figures.items():
            self._writer.add_scalar(f"validation/{name}", value, progress.step)
        self._writer.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
        self._writer.close()


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training") -> int:
    """Run the command; 2 is a mistake of the caller's, 130 an interruption."""
    parser = argparse.ArgumentParser(prog=prog, description="Train a model as a recipe says.")
    parser.add_argument("recipe", type=Path, help="a .toml file; see training/recipes")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output directory")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the run's directory; default runs/<recipe name>")
    options = parser.parse_intermixed_args(arguments)
    limit_threads()
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        directory = options.output or Path("runs") / recipe.name
        run = TrainingRun(recipe, directory, resume=options.resume)
        if run.trainer.finished:
            print(f"the run in {directory} is finished; its best weights are {directory / BEST}")
            return 0
        console = Console(run)
        before = signal.signal(signal.SIGINT, lambda *_: console.interrupt())
        try:
            progress = run.trainer.run(console)
        finally:
            console.close()
            signal.signal(signal.SIGINT, before)
    except (CarouselError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        return 130
    print(f"best validation {progress.best:.4f} {run.task.criterion_name}; weights in {directory / BEST}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

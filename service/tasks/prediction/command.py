"""`python -m service run`: a whole file of rows through a model, without a server.

What is held at once is a piece of the file and one row of state, however long the file is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from carousel.models.bundle import Bundle, open_bundle, versions
from carousel.models.cores import usable_cores
from carousel.models.errors import BundleNotFound
from carousel.models.output_file import check_output
from carousel.service.api.task import Command
from carousel.service.engine.core import EngineCore
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.parameters import Array, FinishReason, Ids, TensorParameters, Tensors
from carousel.service.engine.port import Ended, Request, Snapshot
from carousel.service.engine.probe import check_rows
from carousel.service.served.opening import open_runner, step_threads
from carousel.service.served.ports import as_fed, id_codec, live_ports, step_ports
from carousel.service.settings import Settings
from carousel.service.tasks.prediction.rows_file import PIECE, RowsError, read_rows, write_rows


def _add_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument("--model", required=True, help="of the repository; its newest version is taken")
    run.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="a row for each step: CSV, .npy, .raw or .bin",
    )
    run.add_argument("--output", required=True, type=Path, metavar="FILE", help="gets what it says: CSV or .npy")
    run.add_argument("--outputs", nargs="+", metavar="NAME", help="what to write of it; all where left out")
    # Suppressed, or it would undo a --repository before the word `run`.
    run.add_argument(
        "--repository", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="instead of CAROUSEL_REPOSITORY"
    )


def _run(settings: Settings, options: argparse.Namespace) -> int:
    check_output(options.output, inputs=[options.input])
    found = versions(settings.repository, options.model)
    if not found:
        raise BundleNotFound(
            f"{settings.repository} holds no model {options.model!r}; publish one with python -m export"
        )
    bundle = open_bundle(settings.repository / options.model / str(found[-1]))
    _require_steps(bundle, options.model)
    known = step_ports(bundle).outputs
    asked = tuple(dict.fromkeys(options.outputs or bundle.manifest.head.outputs))
    if unknown := [name for name in asked if name not in known]:
        raise RowsError(f"--outputs: {options.model} has no output {unknown[0]!r}; outputs are {', '.join(known)}")
    threads = settings.intra_op_threads or step_threads(bundle, usable_cores())
    steps = _Steps(bundle, asked, threads)
    count, pieces = read_rows(options.input, live_ports(bundle))
    if count is None and options.output.suffix == ".npy":
        count = sum(len(next(iter(piece.values()))) for piece in pieces)
        _, pieces = read_rows(options.input, live_ports(bundle))
    ports = {name: known[name] for name in asked}
    with (
        tqdm(total=count, unit=" steps", desc=options.model) as bar,
        write_rows(options.output, ports, count) as write,
    ):
        for piece in pieces:
            try:
                write(steps.take(piece))
            except ValueError as error:
                raise RowsError(f"{options.input}: after {steps.taken:,} steps: {error}") from None
            bar.update(steps.taken - bar.n)
    return 0


def _require_steps(bundle: Bundle, name: str) -> None:
    """Hold that rows of a file are all that the model needs."""
    if bundle.encoder is not None or bundle.context:
        raise RowsError(f"{name} reads more than a row a step (an encoder's input, or context); ask it with a server")
    if not bundle.manifest.step.inputs:
        raise RowsError(f"{name} has no inputs, and goes on by itself; ask it with a server")


class _Steps:
    """A sequence, a piece at a time.

    Args:
        bundle: the model.
        outputs: that are wanted.
        threads: of an operator.
    """

    def __init__(self, bundle: Bundle, outputs: tuple[str, ...], threads: int) -> None:
        self._bundle = bundle
        self._core = EngineCore(check_rows(open_runner(bundle, threads), 1).runner, 1)
        self._head = TensorParameters(outputs, each=True)
        self._snapshot: Snapshot | None = None
        self.taken = 0

    def take(self, rows: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the model says after each of these steps. [m, ...] each

        Raises:
            ValueError: a number is none of a port's. RowsError: the model failed. RunnerBroken
        """
        prompt, inputs = self._fed(rows)
        wanted = Request(prompt, self._head, inputs=inputs, snapshot=self._snapshot, keep_state=True)
        self._core.add(0, wanted)
        finished: list[tuple[int, Ended]] = []
        with np.errstate(all="ignore"):
            while not finished:
                finished = self._core.step().finished
        ((_, end),) = finished
        if end.reason is FinishReason.FAILED or not isinstance(end.result, Tensors):
            raise RowsError(f"the model failed after {self.taken + end.counts.prompt:,} steps: {end.detail}")
        self._snapshot = end.snapshot
        self.taken += len(prompt)
        return end.result.outputs

    def _fed(self, rows: Mapping[str, Array]) -> tuple[Ids, Mapping[str, Array]]:
        bundle = self._bundle
        if id_codec(bundle) is None:
            return fed_steps(step_ports(bundle).inputs, rows, non_finite=bundle.manifest.step.non_finite)
        (ids,) = as_fed(bundle, rows).values()
        return ids.astype(np.int64), {}


RUN = Command(
    help="run a model over a whole file of rows",
    description=f"Run a model over a whole file, a row a step, in one sequence; {PIECE:,} rows are held at once.",
    add_arguments=_add_arguments,
    run=_run,
)

"""Steps of the first n rows, over arrays that stay where they are.

Axes: n active rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from carousel.service.engine.parameters import Array, FinishReason
from carousel.service.engine.rows.table import RowEnds
from carousel.service.engine.runner import Runner, Step, StepArrays, run_zeros
from carousel.service.engine.states.pool import StatePool, zeros


class Steps:
    """Runs them, each bound once.

    Args:
        runner: runs the step graph.
        pool: holds the states.
        max_rows: that there are.
    """

    def __init__(self, runner: Runner, pool: StatePool, max_rows: int) -> None:
        self._runner = runner
        self._pool = pool
        self.inputs: Mapping[str, Array] = zeros(runner.ports.inputs, max_rows)
        """What rows are fed, by port."""
        self.outputs: Mapping[str, Array] = zeros(runner.ports.outputs, max_rows)
        """What the last step said, by port."""
        self._bound: dict[tuple[int, bool], Step] = {}
        """By number of rows and by which of the pool's two arrays is read."""

    def run(self, n: int) -> RowEnds:
        """One step of n rows. Returns the rows that failed, with the reason.

        A step that raises says nothing about which row it was; what it read is untouched, so each row is tried alone.

        Raises:
            RunnerBroken: it failed for every row, and for a row of zeros too.
        """
        key = (n, self._pool.swapped)
        failures: RowEnds = {}
        try:
            step = self._bound.get(key)
            if step is None:
                step = self._bound[key] = self._bind(slice(0, n))
            step()
        except Exception:
            for row in range(n):
                try:
                    self._bind(slice(row, row + 1))()
                except Exception as error:
                    failures[row] = (FinishReason.FAILED, f"{type(error).__name__}: {error}")
            if len(failures) == n:
                run_zeros(self._runner, 1)
        self._pool.swap()
        return failures

    def _bind(self, rows: slice) -> Step:
        return self._runner.bind(
            StepArrays(
                inputs={name: array[rows] for name, array in self.inputs.items()},
                before=self._pool.before(rows),
                context=self._pool.context(rows),
                after=self._pool.after(rows),
                outputs={name: array[rows] for name, array in self.outputs.items()},
            )
        )

"""How a network becomes proven graphs: here of a step alone; captioning.py has those of an encoder and a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import override  # of Python 3.12

from carousel.export.calibration import measured_on
from carousel.export.checks.parity import ParityError, measure_parity
from carousel.export.checks.prefill import require_same_states
from carousel.export.extractor import ExtractorError
from carousel.export.measure import Data
from carousel.export.onnx_graph import export_step
from carousel.export.passes.prefill import NoPrefill
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.export.progress import Progress
from carousel.models.manifest import Parity
from carousel.models.nn.load import Trained
from carousel.models.nn.validation import ValidationData
from carousel.models.step import STEP_GRAPH, prefill_name

Graphs = Mapping[str, bytes]
"""By file."""


class Making(ABC):
    """Graphs of a network, proven to be the network.

    Args:
        path: of the checkpoint, for the errors' sentences.
        trained: what it holds.
        encoder: the ONNX file of the frozen encoder in front of it, if one was given.

    Raises:
        ExtractorError: there is a file and should be none, there is none and should be one, or it is another one.
    """

    no_prefill = ""
    """Why int8 graphs have no prefill graph among them, where they have none."""
    in_fp32: Sequence[str] = ()
    """Of each product of an int8 step that is still in fp32: why."""

    @abstractmethod
    def __init__(self, path: Path, trained: Trained, encoder: Path | None) -> None: ...

    @abstractmethod
    def int8(self, data: Data) -> Graphs:
        """Those of the graphs that are put into int8, not yet compared with the network.

        Args:
            data: what ranges are measured on.

        Raises:
            NoBound: a product reads what is no number on the data.
        """

    @abstractmethod
    def proven(self, int8: Graphs | None, progress: Progress) -> tuple[Graphs, Parity]:
        """All graphs, those of `int8` among them; all in fp32 where that is None.

        Raises:
            ParityError: they are not the network.
        """


class StepMaking(Making):
    """Of a network whose sequences begin with zeros."""

    @override
    def __init__(self, path: Path, trained: Trained, encoder: Path | None) -> None:
        if encoder is not None:
            raise ExtractorError(f"{path}: is of task {trained.task!r}, which reads no images; leave out --encoder")
        self._network = trained.network

    @override
    def int8(self, data: Data) -> Graphs:
        """See Making."""
        assert isinstance(data, ValidationData)
        step = self._network.step_module()
        graph, self.in_fp32 = int8_step(export_step(step), measure=measured_on(step, data))
        return {STEP_GRAPH: graph}

    @override
    def proven(self, int8: Graphs | None, progress: Progress) -> tuple[Graphs, Parity]:
        """See Making; a prefill graph that leaves other states is left out."""
        step = self._network.step_module()
        if int8 is None:
            graph = export_step(step)
            return {STEP_GRAPH: graph}, measure_parity(self._network, graph)
        graph = int8[STEP_GRAPH]
        parity = measure_parity(self._network, graph, "int8")
        progress.stage("building the prefill graphs, and comparing their states")
        try:
            prefill = prefill_graphs(graph)
            require_same_states(step, graph, prefill)
        except (ParityError, NoPrefill) as error:
            self.no_prefill = str(error)
            return int8, parity
        return {**int8, **{prefill_name(place): part for place, part in enumerate(prefill)}}, parity

"""How a network becomes proven graphs: of a step alone, or of an encoder and a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from typing_extensions import override  # of Python 3.12

from carousel.export.calibration import measured_on
from carousel.export.captioning import captioning_graphs, extractor_of, int8_captioning_graphs
from carousel.export.checks.parity import ParityError, measure_parity
from carousel.export.checks.prefill import require_same_states
from carousel.export.extractor import ExtractorError
from carousel.export.measure import Data
from carousel.export.onnx_graph import export_step
from carousel.export.passes.prefill import NoPrefill
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.export.progress import Progress
from carousel.models.codec.image import ImageCodec
from carousel.models.manifest import Parity
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.load import Trained
from carousel.models.nn.validation import CaptioningValidationData, ValidationData
from carousel.models.step import STEP_GRAPH, prefill_name

Graphs = Mapping[str, bytes]
"""By file."""


class Making(Protocol):
    """Graphs of a network, proven to be the network."""

    no_prefill: str
    """Why int8 graphs have no prefill graph among them, where they have none."""
    in_fp32: list[str]
    """Of each product of an int8 step that is still in fp32: why."""

    def fp32(self) -> tuple[Graphs, Parity]:
        """All graphs in fp32.

        Raises:
            ParityError: they are not the network.
        """
        ...

    def int8(self, data: Data) -> Graphs:
        """Those of the graphs that are put into int8, not yet compared with the network.

        Args:
            data: what ranges are measured on.

        Raises:
            NoBound: a product reads what is no number on the data.
        """
        ...

    def proven(self, int8: Graphs, progress: Progress) -> tuple[Graphs, Parity]:
        """All graphs, those of int8 among them.

        Raises:
            ParityError: they are not the network.
        """
        ...


class StepMaking:
    """Of a network whose sequences begin with zeros."""

    no_prefill = ""

    def __init__(self, path: Path, trained: Trained, encoder: Path | None) -> None:
        if encoder is not None:
            raise ExtractorError(f"{path}: is of task {trained.task!r}, which reads no images; leave out --encoder")
        self.in_fp32: list[str] = []
        self._network = trained.network

    def fp32(self) -> tuple[Graphs, Parity]:
        """See Making."""
        graph = export_step(self._network.step_module())
        return {STEP_GRAPH: graph}, measure_parity(self._network, graph)

    def int8(self, data: Data) -> Graphs:
        """See Making."""
        assert isinstance(data, ValidationData)
        step = self._network.step_module()
        graph, self.in_fp32 = int8_step(export_step(step), measure=measured_on(step, data))
        return {STEP_GRAPH: graph}

    def proven(self, int8: Graphs, progress: Progress) -> tuple[Graphs, Parity]:
        """See Making; a prefill graph that leaves other states is left out."""
        graph, step = int8[STEP_GRAPH], self._network.step_module()
        parity = measure_parity(self._network, graph, "int8")
        progress.stage("building the prefill graphs, and comparing their states")
        try:
            prefill = prefill_graphs(graph)
            require_same_states(step, graph, prefill)
        except (ParityError, NoPrefill) as error:
            self.no_prefill = str(error)
            return int8, parity
        return {**int8, **{prefill_name(place): part for place, part in enumerate(prefill)}}, parity


class EncoderMaking(Making):
    """Of a network whose sequences begin with what it makes of an image."""

    no_prefill = ""

    def __init__(self, path: Path, trained: Trained, encoder: Path | None) -> None:
        assert isinstance(trained.network, CaptioningModel)
        self.in_fp32: list[str] = []
        self._network = trained.network
        self._preprocessing = trained.codec(ImageCodec).preprocessing
        self._extractor = extractor_of(path, trained.encoder, encoder)

    def fp32(self) -> tuple[Graphs, Parity]:
        """See Making."""
        return captioning_graphs(self._network, self._preprocessing, self._extractor)

    def int8(self, data: Data) -> Graphs:
        """See Making."""
        assert isinstance(data, CaptioningValidationData)
        graphs, self.in_fp32 = int8_captioning_graphs(self._network, self._preprocessing, data)
        return graphs

    @override
    def proven(self, int8: Graphs, progress: Progress) -> tuple[Graphs, Parity]:
        """See Making."""
        return captioning_graphs(self._network, self._preprocessing, self._extractor, int8)

"""What is in the frames of a raw stream: rows of a model's ports, as bytes or as JSON.

Axes: m steps of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from carousel.service.api.wire import frames
from carousel.service.api.wire.rows import RawStart, Steps
from carousel.service.engine.fed import Answer, Fed
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.parameters import Array
from carousel.service.engine.states.pool import StateSpec
from carousel.service.errors import RequestError, ServiceError
from carousel.service.served.ports import as_fed, id_codec, live_ports, step_ports
from carousel.service.served.repository import ServedModel
from carousel.service.work.rows import NO_STEPS, array_of, as_json, asked_outputs


class RawFrames:
    """Between the frames that a `start` agreed on and what the engine is fed and answers.

    Args:
        model: the model.
        start: what was asked for.
        max_bytes: of a message.

    Raises:
        RequestError: the model has no such ports.
    """

    def __init__(self, model: ServedModel, start: RawStart, max_bytes: int) -> None:
        asked = asked_outputs(model, start.outputs)
        self._bundle = model.bundle
        self._binary, self._each = start.binary, start.each
        self.inputs = live_ports(model.bundle)
        self.outputs = {name: spec for name, spec in step_ports(model.bundle).outputs.items() if name in asked}
        self.ids = id_codec(model.bundle) is not None
        """Whether what is fed are ids."""
        longest = model.bundle.manifest.limits.max_prompt_tokens
        told = sum(spec.row_bytes for spec in self.outputs.values())
        self.max_steps = max(1, min(longest, max_bytes // told)) if start.each else longest
        """Of a frame: its answer is to be no longer than a message may be."""
        if start.binary:
            self._port, self._row = _binary_port(self.inputs)
            self._row_bytes = self._row.row_bytes
            self._checked = (
                self._row.dtype.startswith("float") and self._port not in self._bundle.manifest.step.non_finite
            )
            self._row_type = np.dtype(self._row.dtype).newbyteorder("<")

    def of_bytes(self, content: bytes) -> Fed:
        """The steps of a binary frame."""
        steps, rest = divmod(len(content), self._row_bytes)
        if rest or not steps:
            raise RequestError(
                "invalid_request",
                f"the frame has {len(content):,} bytes; allowed are whole rows of {self._port}, at least one, each "
                f"{self._row_bytes:,} bytes ({self._row.dtype}{list(self._row.shape)}, little-endian)",
            )
        self._check_steps(steps)
        rows = np.frombuffer(content, self._row_type).reshape(steps, *self._row.shape)
        if self._checked and b"\0" in np.isfinite(rows).tobytes():  # which is quicker than `all`
            raise RequestError("invalid_request", f"{self._port}: holds a number that is not finite")
        return self._fed(steps, {self._port: rows})

    def of_json(self, frame: Steps) -> Fed:
        """The steps of a text frame."""
        specs = self.inputs
        if specs and frame.steps is not None:
            raise RequestError("invalid_request", NO_STEPS)
        for name, rows in frame.inputs.items():
            self._check_steps(len(rows), f"inputs.{name}: ")
        self._check_steps(frame.steps or 0, "steps: ")
        try:
            given = {name: array_of(name, rows, specs.get(name)) for name, rows in frame.inputs.items()}
            numbers, inputs = fed_steps(specs, given, frame.steps, self._bundle.manifest.step.non_finite)
        except ValueError as error:
            raise RequestError("invalid_request", f"inputs: {error}") from None
        return self._fed(len(numbers), inputs)

    def told(self, answer: Answer, index: int) -> bytes | str:
        """The frame of an answer; `index` is the number of its first step."""
        if answer.error is not None:
            return refused(ServiceError("step_failed", f"the frame failed, and is undone: {answer.error}"), index)
        if self._binary:
            return b"".join([part.tobytes() for part in answer.outputs])
        parts = answer.outputs if self._each else [part[-1] for part in answer.outputs]
        told = dict(zip(self.outputs, parts, strict=True))
        return as_json({"type": "outputs", "index": index}, told).decode()

    def _check_steps(self, steps: int, where: str = "") -> None:
        if steps > self.max_steps:
            raise RequestError(
                "prompt_too_long", f"{where}{steps:,} steps in a frame; allowed are {self.max_steps:,}; send several"
            )

    def _fed(self, steps: int, rows: Mapping[str, Array]) -> Fed:
        try:
            return Fed(steps, as_fed(self._bundle, rows) if self.ids else rows)
        except ValueError as error:
            raise RequestError("token_out_of_range", f"inputs: {error}") from None


def refused(error: ServiceError, index: int) -> str:
    """What comes in the place of an answer; `index` is the number of the step that is next."""
    return frames.dumps({**frames.error(error), "index": index})


def told_ports(ports: Mapping[str, StateSpec]) -> list[dict[str, Any]]:
    """Ports as `accepted` names them."""
    return [{"name": name, "dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in ports.items()]


def _binary_port(inputs: Mapping[str, StateSpec]) -> tuple[str, StateSpec]:
    """The one port of numbers that is fed."""
    ports = ", ".join(f"{name} {spec.dtype}{list(spec.shape)}" for name, spec in inputs.items()) or "none"
    if len(inputs) != 1 or any(spec.dtype == "bool" for spec in inputs.values()):
        raise RequestError(
            "invalid_request",
            f"binary: is for models with one port of numbers; inputs are {ports}; send steps as JSON",
        )
    return next(iter(inputs.items()))

"""How large a step's values become on validation data: for those that have no bound (passes/bounds.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from carousel.export.forward import GraphForward
from carousel.export.passes.int8 import LargestMet
from carousel.models.nn.network import StepModule
from carousel.models.nn.validation import ValidationData

CALIBRATION_STEPS = 8192
"""So many tokens or attempts are read."""


def measured_on(module: StepModule, data: ValidationData) -> LargestMet:
    """Looks for the largest entries of a step's values while it reads the first CALIBRATION_STEPS of the data."""

    def measure(step: onnx.ModelProto, values: Sequence[str]) -> dict[str, float]:
        largest, left = dict.fromkeys(values, 0.0), CALIBRATION_STEPS
        for sequence in data.sequences:
            forward = GraphForward(step.SerializeToString(), module, 1, values)
            forward(sequence[None, :left])
            largest = {name: float(np.maximum(seen, forward.largest[name])) for name, seen in largest.items()}
            left -= min(left, len(sequence))
            if not left:
                break
        return largest

    return measure

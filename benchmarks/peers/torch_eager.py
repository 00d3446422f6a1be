"""The peer without an export: the naive service, with the network itself in PyTorch, eagerly, instead of onnxruntime.

python -m benchmarks.peers.torch_eager --port 8001
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
import uvicorn
from numpy.typing import NDArray

from carousel.benchmarks.naive import create_app
from carousel.benchmarks.words import words_bundle, words_model
from carousel.models.bundle import open_bundle
from carousel.models.nn.language import LanguageModel


class TorchStep:
    """A language model, one step at a time, in the place of a step graph. Axes: B rows, V vocabulary."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def initial_states(self, rows: int) -> Any:
        """The network's own. It is handed back to `run` as it is."""
        return self._model.initial_state(rows)

    def run(self, tokens: NDArray[np.int64], states: Any) -> tuple[NDArray[np.float32], Any]:
        """One step. tokens <int64>[B] -> logits <float32>[B, V] and the state after it."""
        with torch.inference_mode():
            logits, after = self._model(torch.from_numpy(tokens)[:, None], states)
            result: NDArray[np.float32] = logits[:, 0].numpy()
            return result, after


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.torch_eager")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # requests run side by side: more threads each would only be in one another's way
    app = create_app(open_bundle(words_bundle()), TorchStep(words_model()))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()

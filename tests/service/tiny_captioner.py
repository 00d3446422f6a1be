"""A captioning model small enough to be written down twice: as ONNX graphs, and in numpy as their oracle.

Its captions mean nothing, and depend on the colours of the image's six parts. The sizes all differ.

Axes: B rows, P = 6 image positions (2 x 3), D = 4 feature, H = 5 hidden, E = 7 embedding, V = 13 vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from carousel.models.bundle import publish
from carousel.models.codec.image import Preprocessing
from carousel.models.codec.text import TextCodec
from tests.manifests import manifest_of

Floats = npt.NDArray[np.float32]

BEGIN, END = 1, 2
WORDS = ("<unk>", "<s>", "</s>", "a", "red", "green", "blue", "circle", "square", "over", "under", "and", "ü")
HEIGHT, WIDTH, ROWS, COLUMNS = 8, 9, 2, 3
FEATURE, HIDDEN, EMBEDDING = 4, 5, 7
PREPROCESSING = Preprocessing(width=WIDTH, height=HEIGHT, mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5))


class TinyCaptioner:
    """Weights, graphs and the same computation in numpy.

    Args:
        end_bias: added to the end token's logit; -inf never ends.
        attends: whether the step graph tells where it looks.
        seed: of the weights.
    """

    def __init__(self, *, end_bias: float = 0.5, attends: bool = True, seed: int = 11) -> None:
        random = np.random.default_rng(seed)

        def normal(*shape: int, scale: float = 1.0) -> Floats:
            return (scale * random.standard_normal(shape)).astype(np.float32)

        self.attends = attends
        self.weights = {
            "colours": normal(3, FEATURE, scale=2.0),  # [3, D]
            "first": normal(FEATURE, HIDDEN),  # [D, H]
            "embedding": normal(len(WORDS), EMBEDDING),  # [V, E]
            "query": normal(HIDDEN, FEATURE, scale=2.0),  # [H, D]
            "from_hidden": normal(HIDDEN, HIDDEN),
            "from_token": normal(EMBEDDING, HIDDEN),
            "from_context": normal(FEATURE, HIDDEN),
            "output": normal(HIDDEN, len(WORDS), scale=2.0),  # [H, V]
            "bias": np.zeros(len(WORDS), np.float32),
        }
        self.weights["bias"][:2] = -1e4  # as <unk> and <s> are never targets
        self.weights["bias"][END] = end_bias

    def encoder_graph(self) -> bytes:
        """Image to features and first state."""
        pool = [HEIGHT // ROWS, WIDTH // COLUMNS]
        nodes = [
            helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=pool, strides=pool),  # [B, 3, 2, 3]
            helper.make_node("Reshape", ["pooled", "flat"], ["listed"]),  # [B, 3, P]
            helper.make_node("Transpose", ["listed"], ["positions"], perm=[0, 2, 1]),  # [B, P, 3]
            helper.make_node("MatMul", ["positions", "colours"], ["mixed"]),  # [B, P, D]
            helper.make_node("Tanh", ["mixed"], ["memory.features"]),
            # Not ReduceMean: it sums one row in another order than many (export/README.md).
            helper.make_node("MatMul", ["share", "memory.features"], ["row"]),  # [B, 1, D]
            helper.make_node("Squeeze", ["row", "axis"], ["mean"]),
            helper.make_node("MatMul", ["mean", "first"], ["projected"]),
            helper.make_node("Tanh", ["projected"], ["state.h"]),  # [B, H]
        ]
        return _model(
            nodes,
            [("image", TensorProto.FLOAT, [3, HEIGHT, WIDTH])],
            [
                ("state.h", TensorProto.FLOAT, [HIDDEN]),
                ("memory.features", TensorProto.FLOAT, [ROWS * COLUMNS, FEATURE]),
            ],
            self._constants("colours", "first")
            | {
                "flat": np.array([0, 3, -1]),
                "axis": np.array([1]),
                "share": np.full((1, 1, ROWS * COLUMNS), 1 / (ROWS * COLUMNS), np.float32),
            },
        )

    def step_graph(self) -> bytes:
        """Token, state and features to logits, next state and attention."""
        nodes = [
            helper.make_node("MatMul", ["state.h", "query"], ["asked"]),  # [B, D]
            helper.make_node("Unsqueeze", ["asked", "last"], ["column"]),  # [B, D, 1]
            helper.make_node("MatMul", ["memory.features", "column"], ["energies"]),  # [B, P, 1]
            helper.make_node("Softmax", ["energies"], ["shares"], axis=1),
            helper.make_node("Transpose", ["shares"], ["row"], perm=[0, 2, 1]),  # [B, 1, P]
            helper.make_node("MatMul", ["row", "memory.features"], ["context_row"]),  # [B, 1, D]
            helper.make_node("Squeeze", ["context_row", "axis"], ["context"]),
            helper.make_node("Gather", ["embedding", "token"], ["embedded"]),  # [B, E]
            helper.make_node("MatMul", ["state.h", "from_hidden"], ["one"]),
            helper.make_node("MatMul", ["embedded", "from_token"], ["two"]),
            helper.make_node("MatMul", ["context", "from_context"], ["three"]),
            helper.make_node("Sum", ["one", "two", "three"], ["gathered"]),
            helper.make_node("Tanh", ["gathered"], ["next_state.h"]),
            helper.make_node("MatMul", ["next_state.h", "output"], ["scores"]),
            helper.make_node("Add", ["scores", "bias"], ["logits"]),  # [B, V]
        ]
        outputs = [("logits", TensorProto.FLOAT, [len(WORDS)]), ("next_state.h", TensorProto.FLOAT, [HIDDEN])]
        if self.attends:
            nodes.append(helper.make_node("Reshape", ["shares", "grid"], ["attention"]))
            outputs.append(("attention", TensorProto.FLOAT, [ROWS, COLUMNS]))
        return _model(
            nodes,
            [
                ("token", TensorProto.INT64, []),
                ("state.h", TensorProto.FLOAT, [HIDDEN]),
                ("memory.features", TensorProto.FLOAT, [ROWS * COLUMNS, FEATURE]),
            ],
            outputs,
            self._constants("query", "embedding", "from_hidden", "from_token", "from_context", "output", "bias")
            | {"last": np.array([2]), "axis": np.array([1]), "grid": np.array([-1, ROWS, COLUMNS])},
        )

    def publish(
        self, repository: Path, name: str, *, max_new_tokens: int = 20, blanks: bool = False, **decoding: float
    ) -> Path:
        """As a bundle; `decoding` are the manifest's defaults. With `blanks` every word's token begins with one."""
        words = [f"\u2581{word}" if blanks and id_ > END else word for id_, word in enumerate(WORDS)]
        tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if blanks:
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        files = {
            "step.onnx": self.step_graph(),
            "encoder.onnx": self.encoder_graph(),
            "tokenizer.json": TextCodec(tokenizer).to_json().encode(),
        }
        manifest = manifest_of(
            "captioning",
            files,
            codec={"kind": "image", "preprocessing": PREPROCESSING.model_dump(), "begin": "<s>", "end": "</s>"},
            limits={"max_new_tokens": max_new_tokens, "max_beam_width": 6},
            decoding={"temperature": 0.0, **decoding},
        )
        return publish(repository, name, manifest, files)

    def begin(self, content: bytes) -> tuple[Floats, Floats]:
        """A file's first state <float32>[H] and features <float32>[P, D]."""
        image = PREPROCESSING.read(content)  # [3, HEIGHT, WIDTH]
        parts = image.reshape(3, ROWS, HEIGHT // ROWS, COLUMNS, WIDTH // COLUMNS).mean(axis=(2, 4)).reshape(3, -1)
        features = np.tanh(parts.T @ self.weights["colours"])
        return np.tanh(features.mean(axis=0) @ self.weights["first"]), features

    def step(self, token: int, state: Floats, features: Floats) -> tuple[npt.NDArray[np.float64], Floats, Floats]:
        """log p of every next token <float64>[V], the next state, and where it looked <float32>[2, 3]."""
        weights = self.weights
        energies = features @ (state @ weights["query"])
        shares = np.exp(energies - energies.max())
        shares /= shares.sum()
        after = np.tanh(
            state @ weights["from_hidden"]
            + weights["embedding"][token] @ weights["from_token"]
            + (shares @ features) @ weights["from_context"]
        )
        logits = (after @ weights["output"] + weights["bias"]).astype(np.float64)
        below = logits - logits.max()
        return below - math.log(np.exp(below).sum()), after, shares.reshape(ROWS, COLUMNS)

    def greedy(self, content: bytes, longest: int = 20) -> tuple[list[int], float, list[Floats]]:
        """The most probable token at each step, without the end: ids, their log-probability, where each looked."""
        state, features = self.begin(content)
        token, total, tokens, maps = BEGIN, 0.0, list[int](), list[Floats]()
        for _ in range(longest):
            logprobs, state, looked = self.step(token, state, features)
            token = int(logprobs.argmax())
            total += float(logprobs[token])
            if token == END:
                break
            tokens.append(token)
            maps.append(looked)
        return tokens, total, maps

    def beam(
        self, content: bytes, width: int, penalty: float, longest: int = 20
    ) -> list[tuple[list[int], float, float]]:
        """Beam search by its definition: ids, log-probability and score of each, best first."""
        state, features = self.begin(content)
        live = [(list[int](), 0.0, state)]
        finished: list[tuple[list[int], float, float]] = []
        for length in range(1, longest + 1):
            candidates = []
            for order, (tokens, total, before) in enumerate(live):
                logprobs, after, _ = self.step(tokens[-1] if tokens else BEGIN, before, features)
                candidates += [(-(total + value), order, id_, after) for id_, value in enumerate(logprobs.tolist())]
            candidates.sort(key=lambda candidate: candidate[:3])
            survivors = []
            for rank, (negative, order, token, after) in enumerate(candidates[: 2 * width]):
                tokens = live[order][0]
                if token == END:
                    if rank < width:
                        finished.append((tokens, -negative, -negative / length**penalty))
                elif len(survivors) < width:
                    survivors.append(([*tokens, token], -negative, after))
            live = survivors
            if len(finished) >= width:
                break
        else:
            finished += [(tokens, total, total / longest**penalty) for tokens, total, _ in live]
        return sorted(finished, key=lambda one: -one[2])[:width]

    def _constants(self, *names: str) -> dict[str, npt.NDArray[np.generic]]:
        return {name: self.weights[name] for name in names}


def text_of(tokens: list[int]) -> str:
    """A caption's words."""
    return " ".join(WORDS[token] for token in tokens)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[int]]],
    outputs: list[tuple[str, int, list[int]]],
    constants: dict[str, npt.NDArray[np.generic]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content

"""The tracing bundle that is measured: 200 LSTM units, 124 skills, random weights; and the same network in torch.

The sizes are those of DKT on ASSISTments 2009. Speed does not depend on the weights, so nothing is trained.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from carousel.benchmarks.words import REPOSITORY
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import versions
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.nn.checkpoint import Checkpoint, write_checkpoint
from carousel.models.nn.tracing import TracingModel, TracingModelConfig

MODEL = "tutor"
SKILLS = 124


def tutor_model() -> TracingModel:
    """The network; the same at every call."""
    torch.manual_seed(0)
    return TracingModel(TracingModelConfig(skill_count=SKILLS, embedding_size=100, hidden_size=200)).eval()


def tutor_bundle() -> Path:
    """The bundle's directory, made where there is none and kept in build/."""
    if existing := versions(REPOSITORY, MODEL):
        return REPOSITORY / MODEL / str(existing[-1])
    model = tutor_model()
    codec = InteractionCodec([f"skill {number}" for number in range(SKILLS)])
    header = {"task": "tracing", "model": model.config.to_json(), "skills": codec.to_json()}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    with TemporaryDirectory() as directory:
        path = Path(directory) / "tutor.safetensors"
        write_checkpoint(path, Checkpoint(tensors, header))
        return export_checkpoint(path, REPOSITORY, MODEL).bundle

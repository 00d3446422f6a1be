"""The serving side carries no training code, in its imports and in its dependencies."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINING_ONLY = {"torch", "onnx", "onnxscript", "safetensors", "tensorboard"}


def test_importing_the_service_leaves_training_code_out():
    starts = ("app", "server.server", "__main__")
    code = "import sys; " + "; ".join(f"import carousel.service.{each}" for each in starts) + "; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = result.stdout.split()
    loaded = {name.partition(".")[0] for name in modules}
    assert "onnxruntime" in loaded
    assert not loaded & TRAINING_ONLY
    rooms = {name.split(".")[1] for name in modules if name.startswith("carousel.")}
    assert rooms == {"models", "service"}
    assert "redis" not in loaded  # megabytes for those who share no sessions


def test_base_install_names_no_training_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}

    assert "onnxruntime" in names(project["dependencies"])
    assert not names(project["dependencies"]) & TRAINING_ONLY
    assert names(project["optional-dependencies"]["train"]) >= TRAINING_ONLY

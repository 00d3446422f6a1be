"""models/README.md names every field of a manifest, and its example is one."""

import json
import re
from pathlib import Path

from pydantic import BaseModel

from carousel.models.codec.spec import CODECS
from carousel.models.figures import Figures
from carousel.models.head import HEADS
from carousel.models.manifest import (
    DecodingDefaults,
    EncoderSpec,
    Limits,
    Manifest,
    Parity,
    Provenance,
    StateSpec,
    StepSpec,
)

README = (Path(__file__).parents[2] / "models" / "README.md").read_text(encoding="utf-8")


def fields(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_every_field_of_a_manifest_is_in_the_table() -> None:
    table = README[README.index("### `manifest.json`") : README.index("### What is refused")]
    told = {name.rpartition(".")[2] for name in re.findall(r"`([\w.\[\]]+)`", table)}
    parts = (Manifest, StepSpec, StateSpec, EncoderSpec, Limits, DecodingDefaults, Parity, Figures, Provenance)
    missing = {name for part in parts for name in fields(part)} - told
    assert missing == {"encoder", "step", "states", "limits", "decoding", "parity", "figures", "provenance"}  # of parts


def test_every_kind_of_codec_and_head_is_told_with_its_fields() -> None:
    for title, kinds in (("### Codecs", CODECS.choices), ("### Heads", HEADS)):
        table = README[README.index(title) : README.index("\n### ", README.index(title) + 5)]
        for kind, spec in kinds.items():
            row = next(line for line in table.splitlines() if line.startswith(f"| `{kind}`"))
            assert all(f"`{name}`" in row for name in fields(spec) - {"kind"}), kind


def test_example_is_a_manifest() -> None:
    example = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL)[1])
    for entry in example["files"].values():
        entry["sha256"] = "0" * 64
    assert Manifest.model_validate(example).head.outputs == ("logits",)

"""What the tests of several rooms share: tiny bundles with random weights, made through the export room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from carousel.models.codec.text import UNKNOWN_TOKEN
from tests.quick_exports import quick_exports

# A deadline measures the machine's other work as much as the code.
hypothesis.settings.register_profile("carousel", deadline=None)
hypothesis.settings.load_profile("carousel")


def character_tokenizer(vocabulary: int) -> Tokenizer:
    """The unknown token, a line's end, and letters from 'a' on: `vocabulary` tokens, the ids in that order."""
    tokens = [UNKNOWN_TOKEN, "\n", *(chr(ord("a") + index) for index in range(vocabulary - 2))]
    tokenizer = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class MakeCheckpoint(Protocol):
    def __call__(
        self,
        path: Path,
        *,
        cell: str = "lstm",
        vocabulary: int = 13,
        embedding: int = 5,
        hidden: int = 7,
        layers: int = 2,
        tied: bool = False,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
    ) -> Path: ...


class MakeBundle(Protocol):
    def __call__(
        self,
        repository: Path,
        name: str,
        *,
        cell: str = "lstm",
        vocabulary: int = 13,
        embedding: int = 5,
        hidden: int = 7,
        layers: int = 2,
        tied: bool = False,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
    ) -> Path: ...


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """Writes a language model's checkpoint with random weights and a character tokenizer, unless another is given of as
    many tokens; returns its path."""
    import torch  # only tests that need a model pay for torch

    from carousel.models.nn.checkpoint import Checkpoint, write_checkpoint
    from carousel.models.nn.language import LanguageModel, LanguageModelConfig

    torch.set_num_threads(1)
    quick_exports()

    def make(
        path: Path,
        *,
        vocabulary: int = 13,
        embedding: int = 5,
        hidden: int = 7,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        **shape,
    ) -> Path:
        config = LanguageModelConfig(vocabulary_size=vocabulary, embedding_size=embedding, hidden_size=hidden, **shape)
        model = LanguageModel(config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():  # wide enough that every weight and bias shows in the logits
            torch.nn.init.normal_(parameter.data, std=0.5, generator=generator)
        header = {
            "task": "language",
            "model": config.to_json(),
            "tokenizer": (tokenizer or character_tokenizer(vocabulary)).to_str(),
            "validation": {"tokens": 11, "nats_per_token": 1.5, "perplexity": 4.48, "bits_per_character": 2.16},
            "provenance": {
                "recipe": "[model]\n",
                "corpus_sha256": "0" * 64,
                "parameters": model.parameter_count,
                "cell": config.cell,
                "steps": 17,
            },
        }
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        write_checkpoint(path, Checkpoint(tensors, header))
        return path

    return make


@pytest.fixture(scope="session")
def make_bundle(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Publishes such a model as the next version of `name`; returns the bundle's directory."""
    from carousel.export.publish import export_checkpoint

    def make(repository: Path, name: str, **shape) -> Path:
        checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors", **shape)
        return export_checkpoint(checkpoint, repository, name).bundle

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published two-layer LSTM bundle `<repository>/tiny/1`, 13 tokens. Shared: copy it to change it."""
    return make_bundle(tmp_path_factory.mktemp("repository"), "tiny")


TINY_SKILLS = ("counting", "addition", "fractions, like denominators", "Bruchrechnung \u00fc", "area")


@pytest.fixture(scope="session")
def make_tracing_checkpoint() -> Callable[..., Path]:
    """Writes a tracing model's checkpoint with random weights over TINY_SKILLS; returns its path."""
    import torch  # only tests that need a model pay for torch

    from carousel.models.codec.interaction import InteractionCodec
    from carousel.models.nn.checkpoint import Checkpoint, write_checkpoint
    from carousel.models.nn.tracing import TracingModel, TracingModelConfig

    torch.set_num_threads(1)
    quick_exports()

    def make(path: Path, *, embedding: int = 6, hidden: int = 7, seed: int = 0, **shape) -> Path:
        config = TracingModelConfig(skill_count=len(TINY_SKILLS), embedding_size=embedding, hidden_size=hidden, **shape)
        model = TracingModel(config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():  # wide enough that every weight and bias shows in the probabilities
            torch.nn.init.normal_(parameter.data, std=0.5, generator=generator)
        header = {
            "task": "tracing",
            "model": config.to_json(),
            "skills": InteractionCodec(TINY_SKILLS).to_json(),
            "validation": {"attempts": 11, "auc": 0.75, "accuracy": 0.7, "log_loss": 0.6},
            "provenance": {
                "recipe": "[model]\n",
                "corpus_sha256": "0" * 64,
                "parameters": model.parameter_count,
                "cell": config.cell,
                "steps": 17,
            },
        }
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        write_checkpoint(path, Checkpoint(tensors, header))
        return path

    return make


@pytest.fixture(scope="session")
def make_tracing_bundle(
    make_tracing_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Publishes such a model as the next version of `name`; returns the bundle's directory."""
    from carousel.export.publish import export_checkpoint

    def make(repository: Path, name: str, **shape) -> Path:
        checkpoint = make_tracing_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors", **shape)
        return export_checkpoint(checkpoint, repository, name).bundle

    return make


@pytest.fixture(scope="session")
def tiny_tracing_bundle(make_tracing_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published LSTM bundle `<repository>/tiny-tutor/1`, the skills of TINY_SKILLS. Shared: copy it to change it."""
    return make_tracing_bundle(tmp_path_factory.mktemp("repository"), "tiny-tutor")


CAPTION_WORDS = ("<unk>", "<s>", "</s>", "a", "dog", "child", "red", "ball", "runs", "jumps", "on", "grass", "water")


@pytest.fixture(scope="session")
def make_captioning_checkpoint() -> Callable[..., Path]:
    """Writes a captioning model's checkpoint with random weights over CAPTION_WORDS; returns its path.

    `encoder` is a FrozenEncoder, whose map the model reads; without one the model has a convolutional encoder of its
    own, on images of 24 x 16 pixels (a map of 4 rows and 6 columns).
    """
    import torch  # only tests that need a model pay for torch

    from carousel.models.codec.image import Preprocessing
    from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig
    from carousel.models.nn.checkpoint import Checkpoint, write_checkpoint
    from carousel.models.nn.convolution import map_shape
    from carousel.training.corpus.tokenizer import caption_codec

    torch.set_num_threads(1)
    quick_exports()

    def make(path: Path, *, encoder=None, seed: int = 0, **shape) -> Path:
        preprocessing = encoder.preprocessing if encoder else Preprocessing(width=24, height=16)
        channels = () if encoder else (8, 10)
        if encoder:
            rows, columns = encoder.grid or (1, 1)
        else:
            rows, columns = map_shape(preprocessing.height, preprocessing.width, channels)
        sizes = {"embedding_size": 5, "hidden_size": 7, "value_size": 6, "key_size": 9} | shape
        config = CaptioningModelConfig(
            vocabulary_size=len(CAPTION_WORDS),
            rows=rows,
            columns=columns,
            feature_size=encoder.size if encoder else channels[-1],
            channels=channels,
            **sizes,
        )
        model = CaptioningModel(config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():  # wide enough that every weight and bias shows in the logits
            torch.nn.init.normal_(parameter.data, std=0.5, generator=generator)
        header = {
            "task": "captioning",
            "model": config.to_json(),
            "tokenizer": caption_codec(CAPTION_WORDS[3:]).to_json(),
            "begin": "<s>",
            "end": "</s>",
            "max_new_tokens": 8,
            "encoder": encoder.model_dump(mode="json") if encoder else None,
            "preprocessing": preprocessing.model_dump(mode="json"),
            "decoding": {"beam_width": 3, "length_penalty": 0.7},
            "validation": {
                "images": 11, "beam_width": 3, "length_penalty": 0.7, "bleu_1": 60.5, "bleu_4": 20.5,
                "nats_per_token": 2.5,
            },
            "provenance": {
                "recipe": "[model]\n",
                "corpus_sha256": "0" * 64,
                "parameters": model.parameter_count,
                "cell": config.cell,
                "steps": 17,
            },
        }  # fmt: skip
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        write_checkpoint(path, Checkpoint(tensors, header))
        return path

    return make

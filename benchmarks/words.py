"""The bundle that is measured when none is named: 2x512 LSTM, 10,000 words, random weights, in fp32 and in int8.

The speed of a step does not depend on the weights, so nothing is trained. That of sampling does: where a flat model
leaves thousands of words in a nucleus, a trained one leaves a few hundred. So there is a `peaked` model besides,
whose words are as unlike in frequency as those of a language (Zipf 1949) and whose logits differ from step to step.
Each is made once and kept in build/, in a repository of its own, so that a server holds the one that is measured.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from carousel.models.bundle import versions
from carousel.models.errors import BundleNotFound
from carousel.models.manifest import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from carousel.models.nn.language import LanguageModel

REPOSITORY = Path(__file__).resolve().parents[1] / "build" / "benchmarks"
MODEL = "words"
VOCABULARY_SIZE = 10_000
MAX_WORSENING = 1.0
"""Of int8: what random weights make of rounding says nothing of trained ones."""
PEAKED_DEVIATION = 2.0
"""Of a peaked model's logits from the logarithm of a word's frequency: a perplexity of about 150, as trained ones have,
and 360 words (of 10,000) in the nucleus of 0.95 at temperature 0.8."""

Shape = Literal["flat", "peaked"]
VALIDATION_TOKENS = 500
"""Said by the model itself: export measures int8 on them."""


def words_bundle(precision: Precision = "fp32", shape: Shape = "flat", vocabulary_size: int = VOCABULARY_SIZE) -> Path:
    """The bundle's directory, made where there is none.

    Raises:
        BundleNotFound: there is none, and torch is not there to make it.
    """
    kind = "" if shape == "flat" else f"-{shape}"
    kind += "" if vocabulary_size == VOCABULARY_SIZE else f"-{vocabulary_size}"
    repository = REPOSITORY.with_name(f"{REPOSITORY.name}{kind}-{precision}")
    if existing := versions(repository, MODEL):
        return repository / MODEL / str(existing[-1])
    try:
        return _make(repository, precision, words_model(shape, vocabulary_size))
    except ModuleNotFoundError as error:
        raise BundleNotFound(
            f"{error.name} is not installed, so the default bundle cannot be made; "
            "install the extra 'train', or name a bundle with --bundle"
        ) from None


def words_model(shape: Shape = "flat", vocabulary_size: int = VOCABULARY_SIZE) -> LanguageModel:
    """The network in torch; the same at every call."""
    # Here and not above: torch takes seconds to import, and a machine that only serves does not have it.
    import torch

    from carousel.models.nn.language import LanguageModel, LanguageModelConfig

    torch.manual_seed(0)
    model = LanguageModel(
        LanguageModelConfig(vocabulary_size=vocabulary_size, cell="lstm", hidden_size=512, layers=2)
    ).eval()
    if shape == "peaked":
        with torch.no_grad():
            ids = torch.randint(vocabulary_size, (8, 32))
            logits, _ = model(ids, model.initial_state(8))
            model.projection.weight.mul_(PEAKED_DEVIATION / logits.std())
            ranks = 1 + torch.randperm(vocabulary_size)
            model.projection.bias.sub_(ranks.log())
    return model


def _make(repository: Path, precision: Precision, model: LanguageModel) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    from carousel.export.publish import export_checkpoint
    from carousel.models.codec.text import UNKNOWN_TOKEN, TextCodec
    from carousel.models.nn.checkpoint import Checkpoint, write_checkpoint
    from carousel.models.nn.validation import VALIDATION, ValidationData, write_validation

    size = model.config.vocabulary_size
    words = {UNKNOWN_TOKEN: 0} | {f"word{index}": index for index in range(1, size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    digest = "0" * 64  # of a corpus that there is not
    header = {
        "task": "language",
        "model": model.config.to_json(),
        "tokenizer": TextCodec(tokenizer).to_json(),
        "provenance": {
            "recipe": "random weights",
            "corpus_sha256": digest,
            "parameters": model.parameter_count,
            "cell": "lstm",
            "steps": 0,
        },
    }
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    ids = _said(model, VALIDATION_TOKENS)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "words.safetensors"
        write_checkpoint(path, Checkpoint(tensors, header))
        write_validation(path.with_name(VALIDATION), ValidationData("language", digest, [ids], 5 * VALIDATION_TOKENS))
        return export_checkpoint(path, repository, MODEL, precision=precision, max_worsening=MAX_WORSENING).bundle


def _said(model: LanguageModel, count: int) -> Tensor:
    """What the model says of itself. <int64>[count]"""
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens, state = [torch.zeros(1, 1, dtype=torch.int64)], model.initial_state(1)
    with torch.inference_mode():
        while len(tokens) < count:
            logits, state = model(tokens[-1], state)
            tokens.append(torch.multinomial(logits[0].softmax(dim=-1), 1, generator=generator))
    return torch.cat(tokens)[:, 0]

"""The bundle that is measured when none is named: 2x512 LSTM, 10,000 words, random weights, in fp32 and in int8.

Speed does not depend on the weights, so nothing is trained. Each is made once and kept in build/, in a repository of
its own, so that a server holds the one that is measured.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from models.bundle import versions
from models.errors import BundleNotFound
from models.manifest import Precision

if TYPE_CHECKING:
    from models.nn.language import LanguageModel

REPOSITORY = Path(__file__).parents[1] / "build" / "benchmarks"
MODEL = "words"
VOCABULARY_SIZE = 10_000
VALIDATION_TOKENS = 500
"""Random ones too: export measures int8 on them, and neither precision can predict them."""


def words_bundle(precision: Precision = "fp32", *, vocabulary_size: int = VOCABULARY_SIZE) -> Path:
    """The bundle's directory, made where there is none.

    Raises:
        BundleNotFound: there is none, and torch is not there to make it.
    """
    kind = "" if vocabulary_size == VOCABULARY_SIZE else f"-{vocabulary_size}"
    repository = REPOSITORY.with_name(f"{REPOSITORY.name}{kind}-{precision}")
    if existing := versions(repository, MODEL):
        return repository / MODEL / str(existing[-1])
    try:
        return _make(repository, precision, words_model(vocabulary_size))
    except ModuleNotFoundError as error:
        raise BundleNotFound(
            f"{error.name} is not installed, so the default bundle cannot be made; "
            "install the extra 'train', or name a bundle with --bundle"
        ) from None


def words_model(vocabulary_size: int = VOCABULARY_SIZE) -> LanguageModel:
    """The network in torch; the same at every call."""
    # Here and not above: torch takes seconds to import, and a machine that only serves does not have it.
    import torch

    from models.nn.language import LanguageModel, LanguageModelConfig

    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(vocabulary_size, cell="lstm", hidden_size=512, layers=2)).eval()


def _make(repository: Path, precision: Precision, model: LanguageModel) -> Path:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    from export.publish import export_checkpoint
    from models.codec.text import UNKNOWN_TOKEN, TextCodec
    from models.nn.checkpoint import Checkpoint, write_checkpoint
    from models.nn.validation import VALIDATION, ValidationData, write_validation

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
    ids = torch.randint(size, (VALIDATION_TOKENS,), generator=torch.Generator().manual_seed(1))
    with TemporaryDirectory() as directory:
        path = Path(directory) / "words.safetensors"
        write_checkpoint(path, Checkpoint(tensors, header))
        write_validation(path.with_name(VALIDATION), ValidationData("language", digest, [ids], 5 * VALIDATION_TOKENS))
        return export_checkpoint(path, repository, MODEL, precision=precision).bundle

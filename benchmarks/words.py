"""The bundle that is measured when none is named: 2x512 LSTM, 10,000 words, random weights.

Speed does not depend on the weights, so nothing is trained. It is made once and kept in build/.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from models.bundle import versions
from models.errors import BundleNotFound

REPOSITORY = Path(__file__).parents[1] / "build" / "benchmarks"
MODEL = "words"
VOCABULARY_SIZE = 10_000


def words_bundle() -> Path:
    """The bundle's directory, made where there is none.

    Raises:
        BundleNotFound: there is none, and torch is not there to make it.
    """
    if existing := versions(REPOSITORY, MODEL):
        return REPOSITORY / MODEL / str(existing[-1])
    try:
        return _make()
    except ModuleNotFoundError as error:
        raise BundleNotFound(
            f"{error.name} is not installed, so the default bundle cannot be made; "
            "install the extra 'train', or name a bundle with --bundle"
        ) from None


def _make() -> Path:
    # Here and not above: torch takes seconds to import, and a machine that only serves does not have it.
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    from export.publish import export_checkpoint
    from models.codec.text import UNKNOWN_TOKEN, TextCodec
    from models.nn.checkpoint import Checkpoint, write_checkpoint
    from models.nn.language import LanguageModel, LanguageModelConfig

    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(VOCABULARY_SIZE, cell="lstm", hidden_size=512, layers=2))
    words = {UNKNOWN_TOKEN: 0} | {f"word{index}": index for index in range(1, VOCABULARY_SIZE)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    header = {"task": "language", "model": model.config.to_json(), "tokenizer": TextCodec(tokenizer).to_json()}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    with TemporaryDirectory() as directory:
        path = Path(directory) / "words.safetensors"
        write_checkpoint(path, Checkpoint(tensors, header))
        return export_checkpoint(path, REPOSITORY, MODEL).bundle

"""The shipped language model reads what people write as the text that it learnt from would have it."""

from pathlib import Path

import pytest

from carousel.models.bundle import open_bundle, versions
from carousel.models.codec.text import TextCodec

REPOSITORY = Path(__file__).parents[2] / "bundles"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("I\u2019ll not to bed", "I'll not to bed"),
        ("ROMEO:\r\nO,\r\n", "ROMEO:\nO,\n"),
        ("\u201cTo be \u2014 or\u00a0not\u2026\u201d", "'To be -- or not...'"),
    ],
)
def test_shipped_language_model_knows_what_people_type(typed, read):
    codec = open_bundle(REPOSITORY / "shakespeare" / str(max(versions(REPOSITORY, "shakespeare")))).codec(TextCodec)
    assert codec.unknown_id not in codec.encode(typed)
    assert codec.decode(codec.encode(typed)) == read
    assert codec.encode("é") == [codec.unknown_id]

"""The loss of captioning, worked by hand, and what validation says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from carousel.training.corpus.album import Album
from carousel.training.corpus.captions import CaptionedImage
from carousel.training.errors import RecipeError
from carousel.training.recipe import load_recipe
from carousel.training.tasks.captioning.batches import IGNORED, CaptionWindow
from carousel.training.tasks.captioning.losses import uneven_attention, unseen_words
from carousel.training.tasks.captioning.task import CaptioningTask

RECIPE = """
[run]
task = "captioning"

[corpus]
kind = "generated"

[vocabulary]
min_frequency = 2
max_tokens = 6

[encoder]
width = 24
height = 16
channels = [8, 10]

[model]
embedding_size = 5
hidden_size = 7
value_size = 6
key_size = 9

[batches]
images = 4
captions = 2
"""


def album_of(*captions: Sequence[str]) -> Album:
    """Pictures of one shade each, and their captions."""
    pictures = [CaptionedImage(f"{place}.png", tuple(of_picture)) for place, of_picture in enumerate(captions)]
    return Album(pictures, lambda name, side=None: Image.new("RGB", (30, 20), (40 * int(name[0]), 9, 99)), "0" * 64)


TRAIN = album_of(
    ["a dog", "a dog runs", "a dog"], ["a cat runs fast and a dog runs fast"], ["one cat", "a cat"],
    ["a dog and a cat"], ["fast and fast"],
)  # fmt: skip
VALIDATION = album_of(["a dog", "a cat"], ["a snail runs"])


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., CaptioningTask]:
    (tmp_path / "r.toml").write_text(RECIPE)

    def make(*overrides: str, train: Album = TRAIN, validation: Album = VALIDATION) -> CaptioningTask:
        torch.manual_seed(0)
        task = CaptioningTask(load_recipe(tmp_path / "r.toml", list(overrides)), train, validation)
        for parameter in task.module.parameters():
            torch.nn.init.normal_(parameter.data, std=0.5)
        return task

    return make


def nats_alone(task: CaptioningTask, album: Album) -> list[float]:
    """The cross-entropy of each token of each caption, each caption read alone; none of a word that is unknown."""
    codec, losses = task.codec, []
    for picture in album.pictures:
        image = torch.from_numpy(codec.preprocessing.apply(album.open_picture(picture.name)))[None]
        for caption in picture.captions:
            ids = [*codec.text.encode(caption)[:5], codec.end_id]
            state, context = task.module.encode(image)
            token = codec.begin_id
            for id_ in ids:
                logits, state, _ = task.module.step(torch.tensor([token]), state, context)
                if id_ != codec.text.unknown_id:
                    losses.append(-torch.log_softmax(logits[0], 0)[id_].item())
                token = id_
    return losses


@pytest.mark.parametrize("attention", ["none", "soft"])
def test_epochs_loss_is_that_of_each_caption_alone(make_task, attention: str) -> None:
    task = make_task(f"model.attention={attention}")
    losses = [task.loss(window, {})[0].item() for window in task.windows(0, 0)]
    expected = nats_alone(task, TRAIN)
    assert "one" not in task.codec.text.to_json()
    assert sum(losses) / len(losses) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_doubly_stochastic_penalty_is_its_closed_form() -> None:
    looked = torch.tensor([[[[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], [[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]]],
                           [[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]]])  # fmt: skip
    present = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool)
    totals = [(1.75, 1.25), (0.7, 1.3), (1.0, 0.0)]  # the last row of the second picture holds no caption
    expected = sum((1 - total) ** 2 for of_caption in totals for total in of_caption) / 6
    assert uneven_attention(looked, present).item() == pytest.approx(expected)


def test_doubly_stochastic_penalty_is_weighed_into_the_loss(make_task) -> None:
    plain, priced = make_task(), make_task("loss.doubly_stochastic=3.0")
    window = next(plain.windows(0, 0))
    captions = window.captions
    _, looked = plain.module(window.images, captions.ids, captions.present)
    difference = priced.loss(window, {})[0] - plain.loss(window, {})[0]
    assert difference.item() == pytest.approx(3.0 * uneven_attention(looked, captions.present).item(), rel=1e-4)


def test_unseen_words_are_a_cross_entropy_over_the_vocabulary() -> None:
    detected = torch.tensor([[2.0, -1.0, 0.5, 3.0], [-2.0, 0.0, 1.0, -0.5]])
    targets = torch.tensor([[[3, 1, 3], [1, IGNORED, IGNORED]], [[2, IGNORED, IGNORED], [IGNORED] * 3]])
    held = [[0, 1, 0, 1], [0, 0, 1, 0]]
    each = [
        -math.log(1 / (1 + math.exp(-logit if holds else logit)))
        for logits, holding in zip(detected.tolist(), held, strict=True)
        for logit, holds in zip(logits, holding, strict=True)
    ]
    assert unseen_words(detected, targets).item() == pytest.approx(sum(each) / 2)


def test_unseen_words_are_weighed_into_the_loss(make_task) -> None:
    plain, priced = make_task(), make_task("loss.words=0.7")
    window = next(plain.windows(0, 0))
    expected = unseen_words(plain.module.detect(plain.module.features(window.images)), window.captions.targets)
    difference = priced.loss(window, {})[0] - plain.loss(window, {})[0]
    assert difference.item() == pytest.approx(0.7 * expected.item(), rel=1e-4)


def test_scheduled_sampling_rises_from_none_to_its_most(make_task) -> None:
    task, plain = make_task("loss.scheduled_sampling=0.5", "schedule.epochs=3"), make_task()
    window = next(plain.windows(0, 0))
    losses = []
    for epoch in range(3):
        torch.manual_seed(1)
        losses.append(task.loss(CaptionWindow(window.images, window.captions, epoch), {})[0].item())
    assert losses[0] == plain.loss(window, {})[0].item()
    torch.manual_seed(1)
    logits, _ = task.module(window.images, window.captions.ids, window.captions.present, 0.5)
    targets = window.captions.targets[window.captions.present]
    total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    per_window = len(nats_alone(task, TRAIN)) / task.windows_per_epoch
    assert losses[2] == pytest.approx(total / per_window, rel=1e-5)


def test_validation_predicts_and_judges(make_task) -> None:
    task = make_task(validation=album_of(["a dog", "a cat"], ["a snail runs"], ["a dog runs fast"]))
    with torch.no_grad():  # whatever it sees, one of three tokens is next
        for parameter in task.module.parameters():
            parameter.zero_()
        task.module.projection.bias.fill_(-20.0)
        for token in ("a", "dog", "</s>"):
            task.module.projection.bias[task.codec.text.id_of(token)] = 0.0
    seen = task.evaluate()
    # Of the four captions, ends counted, 14 tokens are known; "cat", "runs" twice and "fast" are not the three.
    expected = (10 * math.log(3) + 4 * (math.log(3) + 20)) / 14
    assert seen.figures["nats_per_token"] == pytest.approx(expected, rel=1e-5)
    assert (seen.criterion, seen.nats) == (100 - seen.figures["bleu_4"], seen.figures["nats_per_token"])
    assert not task.module.training


def test_validation_captions_are_decoded_and_judged_as_captions(make_task) -> None:
    """A model that can say one sentence, against references that hold it and do not."""
    task = make_task("decoding.beam_width=1", "model.attention=none", "model.embedding_size=16",
                     "model.hidden_size=16", "vocabulary.max_tokens=4", "decoding.criterion=nats_per_token",
                     validation=album_of(["a dog and runs", "a cat"], ["dog dog dog dog"]))  # fmt: skip
    assert task.criterion_name == "nats/token"
    said = ["a", "dog", "and", "runs"]
    ids = [task.codec.begin_id, *map(task.codec.text.id_of, said)]
    module = task.module
    with torch.no_grad():
        follows = torch.zeros(module.config.vocabulary_size, module.config.vocabulary_size)
        for before, after in pairwise(ids):
            follows[before, after] = 50.0
    module.step = lambda token, state, context: (follows[token], state, None)
    seen = task.evaluate()
    # 4 + 1 of 8 words are right, 3 of 6 pairs, 2 of 4 triples, 1 of 2 runs of four; each as long as its reference.
    assert seen.figures["bleu_1"] == pytest.approx(100 * 5 / 8)
    assert seen.figures["bleu_4"] == pytest.approx(100 * (5 / 8 * 3 / 6 * 2 / 4 * 1 / 2) ** 0.25)
    assert seen.criterion == seen.figures["nats_per_token"]


@pytest.mark.parametrize(
    ("validation", "overrides"),
    [
        (VALIDATION, []),  # of two and three words
        (album_of(["a dog and snail runs fast"]), []),  # three at most in a row that are known
        (album_of(["a dog and a cat"]), ["vocabulary.max_tokens=3"]),  # more cannot be said
    ],
)
def test_weights_are_chosen_by_nats_where_bleu_cannot_move(make_task, validation: Album, overrides: list[str]) -> None:
    task = make_task(*overrides, validation=validation)
    assert task.criterion_name == "nats/token"
    assert (
        "corpus.validation: no caption has 4 words in a row that the model can say, so BLEU-4 is 0" in task.description
    )
    seen = task.evaluate()
    assert seen.criterion == seen.figures["nats_per_token"]
    movable = make_task(validation=album_of(["a dog and a cat"]))
    assert movable.criterion_name == "100 - BLEU-4"
    assert "BLEU-4" not in movable.description


def test_captions_that_lose_words_are_said(make_task) -> None:
    train = album_of(["a dog"] * 2, ["a dog and a cat", "a dog and a cat and"])
    lines = make_task(train=train, validation=album_of(["a dog and a dog and one cat"])).description.splitlines()
    assert lines[:4] == [
        "corpus.validation: 1 of 1 pictures are called as some of corpus.train are, such as '0.png'; if they are the "
        "same, its figures say nothing of others",
        "corpus.train: 1 of 4 captions (25.0 %) are longer than vocabulary.max_tokens = 6, their end counted, and lose "
        "their last words; the longest has 7",
        "corpus.validation: 1 of 1 captions (100.0 %) are longer than vocabulary.max_tokens = 6, their end counted, "
        "and lose their last words; the longest has 9",
        "corpus.validation: 1 of 8 words (12.5 %) are seen less than vocabulary.min_frequency = 2 times in training, "
        "and are read as <unk>",
    ]


def test_captions_without_a_word_to_say_are_refused(make_task) -> None:
    with pytest.raises(
        RecipeError, match=r"^vocabulary\.min_frequency is 9, but no word of the training captions is seen"
    ):
        make_task("vocabulary.min_frequency=9")


def test_validation_of_scenes_counts_what_is_true(make_task) -> None:
    validation = album_of(["a dog"], ["a cat"], ["a dog"], ["a cat"])
    true_of_two = Album(
        validation.pictures, validation.open_picture, "0" * 64, lambda name, caption: name in ("0.png", "2.png")
    )
    seen = make_task(validation=true_of_two).evaluate()
    assert seen.figures["true"] == 50.0
    assert seen.summary.endswith(", 50.0 % true")


def test_pictures_that_are_nowhere_are_refused(make_task) -> None:
    blind = Album(VALIDATION.pictures, None, "0" * 64)
    with pytest.raises(RecipeError, match="the recipe says neither where pictures nor where features are; set corpus"):
        make_task(validation=blind)

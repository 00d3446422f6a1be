"""Captions in one form of words, files of them, and pictures by name."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carousel.training.corpus.caption_files import CaptionKind, read_captions
from carousel.training.corpus.captions import CaptionedImage, normalise_caption
from carousel.training.corpus.pictures import Pictures
from carousel.training.errors import CorpusError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A lady walking her dog , while others look on .", "a lady walking her dog while others look on"),
        ('Two  GIRLS\tin "T-Shirts" (red);\nrunning!', "two girls in t-shirts red running"),
        ("The man's dog isn't there; they've left.", "the man 's dog is n't there they 've left"),
        ("the man 's dog is n't there", "the man 's dog is n't there"),
        ("I'd've said 'it'sn't'", "i 'd 've said it 's n't"),
        ("the dogs' bone at 5 o\u2019clock", "the dogs bone at 5 o'clock"),
        ("rock 'n' roll -- off-road \u2013 4-wheeler-", "rock n roll off-road 4-wheeler"),
        ("about 1,000.5 people,3 dogs.Then D.C.", "about 1,000.5 people 3 dogs then d c"),
        ("#7 & co_op $5 naïve \uff21 cafe\u0301", "7 co op 5 naïve a café"),
        (" . ", ""),
    ],
)
def test_caption_becomes_words(caption: str, words: str) -> None:
    assert normalise_caption(caption) == words


@given(st.one_of(st.text(), st.text(alphabet="aN7'\u2019-., \tsẗİ")))
def test_caption_in_its_form_stays_as_it_is(text: str) -> None:
    once = normalise_caption(text)
    assert normalise_caption(once) == once
    assert once.split() == [word for word in once.split(" ") if word]


TWO_PICTURES = [
    CaptionedImage("b.jpg", ("a dog", "the dog runs")),
    CaptionedImage("a.jpg", ("it 's a cat",)),
]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("tsv", "b.jpg\t0\tA dog .\na.jpg\t0\tIt's a cat\r\n\nb.jpg\t1\tThe dog runs .\nb.jpg\t2\t .\n"),
        ("flickr8k", "b.jpg#0\tA dog .\na.jpg#0\tIt's a cat\nb.jpg#1\tThe dog runs .\n"),
        ("flickr8k", "\ufeffb.jpg#0\tA dog .\ra.jpg#0\tIt's a cat\rb.jpg#1\tThe dog runs .\r"),
        (
            "coco",
            json.dumps({
                "info": {},
                "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg", "width": 9},
                           {"id": 4, "file_name": "nobody_looked.jpg"}],
                "annotations": [{"image_id": 3, "id": 1, "caption": "A dog."}, {"image_id": 7, "caption": "It's a cat"},
                                {"image_id": 3, "id": 2, "caption": "The dog runs\n"}],
            }),
        ),
        ("csv", 'image,split,caption\nb.jpg,x,A dog\n a.jpg,x,"It\'s, a cat"\nb.jpg,x,"The dog\nruns"\n'),
    ],
)  # fmt: skip
def test_captions_are_read_in_every_format(tmp_path: Path, kind: CaptionKind, content: str) -> None:
    plain, packed = tmp_path / "captions", tmp_path / "captions.gz"
    plain.write_bytes(content.encode())
    packed.write_bytes(gzip.compress(content.encode()))
    images, digest = read_captions(plain, kind, "corpus.train")
    assert images == TWO_PICTURES
    assert read_captions(packed, kind, "corpus.train") == (images, digest)


def test_captions_csv_takes_other_columns(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("text,file\nA dog,b.jpg\n")
    images, _ = read_captions(file, "csv", "corpus.train", image_column="file", caption_column="text")
    assert images == [CaptionedImage("b.jpg", ("a dog",))]


def test_captions_are_those_of_the_list_in_its_order(tmp_path: Path) -> None:
    file, names = tmp_path / "Flickr8k.token.txt", tmp_path / "Flickr_8k.trainImages.txt"
    file.write_text("a.jpg#0\tA cat\nb.jpg#0\tA dog\nc.jpg#0\tA bird\n")
    names.write_text("\ufeffc.jpg\r\na.jpg\n\n")
    images, _ = read_captions(file, "flickr8k", "corpus.train", listed_in=names)
    assert [image.name for image in images] == ["c.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("kind", "content", "sentence"),
    [
        ("tsv", "a.jpg\t0\tA cat\n\nb.jpg A dog\n", "f, line 3: is 'b.jpg A dog'; allowed are a name, a number and a"),
        ("tsv", "\t0\tA cat\n", "f, line 1: is '\\t0\\tA cat'; allowed are a name, a number and a"),
        ("tsv", "a.jpg\tfirst\tA cat\n", "f, line 1: is 'a.jpg\\tfirst\\tA cat'; allowed are a name, a number and a"),
        ("tsv", "a.jpg\t0\t.\na.jpg\t1\t!\n", "f: picture 'a.jpg' has no caption with a word in it; leave it out"),
        ("tsv", " \n", "f: holds no caption"),
        ("flickr8k", "a.jpg#0\tA cat\na.jpg\tA cat\n", "f, line 2: is 'a.jpg\\tA cat'; allowed is a name, # and"),
        ("flickr8k", "a.jpg#0 A cat\n", "f, line 1: is 'a.jpg#0 A cat'; allowed is a name, # and a number, a tab"),
        ("csv", "file,caption\na.jpg,A cat\n", "f: has no column 'image'; its columns are 'file', 'caption'"),
        ("csv", "image,caption\na.jpg,A cat, a hat\n", "f, line 2: has not as many cells as the header, 2"),
        ("csv", "image,caption\n ,A cat\n", "f, line 2: image is empty; allowed is a picture's name"),
        ("coco", '{"images": [],\n"annotations": [}', "f, line 2: is not JSON ("),
        ("coco", "[]", "f: has no list 'images'; allowed is COCO's object with images and annotations"),
        ("coco", '{"images": [{"id": 1, "file_name": "a"}]}', "f: has no list 'annotations'"),
        ("coco", '{"images": [3], "annotations": []}', "f: images[0] is 3; allowed is an object"),
        ("coco", '{"images": [{"id": "x", "file_name": "a"}], "annotations": []}', "f: images[0]: id is 'x'; allowed"),
        ("coco", '{"images": [{"id": 1}], "annotations": []}', "f: images[0]: file_name is None; allowed is a text"),
        (
            "coco",
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
            "f: images[1]: id 1 is of 'b' and of 'a'; allowed is one picture an id",
        ),
        ("csv", "image,caption,caption\na.jpg,A cat,A dog\n", "f: has 2 columns 'caption'; allowed is one"),
        (
            "coco",
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "A"}]}',
            "f: annotations[0]: image_id is 2; no entry of images has that id",
        ),
    ],
)
def test_captions_that_are_broken_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: CaptionKind, content: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(content.encode())
    with pytest.raises(CorpusError) as caught:
        read_captions(Path("f"), kind, "corpus.train")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("a.jpg\nx.jpg\n", "names, line 2: names 'x.jpg', of which f has no caption"),
        ("a.jpg\n\na.jpg\n", "names, line 3: names 'a.jpg' a second time; a picture is listed once"),
    ],
)
def test_captions_of_a_list_that_is_broken_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_text("a.jpg\t0\tA cat\n")
    Path("names").write_text(names)
    with pytest.raises(CorpusError) as caught:
        read_captions(Path("f"), "tsv", "corpus.train", listed_in=Path("names"))
    assert str(caught.value) == sentence


def test_pictures_lie_in_a_directory_or_a_zip(tmp_path: Path) -> None:
    directory, packed = tmp_path / "pictures", tmp_path / "pictures.zip"
    (directory / "train2014").mkdir(parents=True)
    (directory / "train2014" / "a.jpg").write_bytes(b"cat")
    with zipfile.ZipFile(packed, "w") as file:
        file.mkdir("Flicker8k_Dataset")
        file.writestr("Flicker8k_Dataset/a.jpg", b"cat")
        file.writestr("one/b.jpg", b"dog")
        file.writestr("other/b.jpg", b"wolf")
    assert Pictures(directory, "images").read("train2014/a.jpg") == b"cat"
    pictures = Pictures(packed, "images")
    assert pictures.read("a.jpg") == b"cat"
    assert pictures.read("other/b.jpg") == b"wolf"
    for missing in ("b.jpg", "c.jpg"):  # the first could be either
        with pytest.raises(CorpusError, match=f"has no picture '{missing}', which the captions name"):
            pictures.read(missing)
    with pytest.raises(CorpusError, match=r"has no picture 'a\.jpg'"):
        Pictures(directory, "images").read("a.jpg")


def test_pictures_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "pictures.zip"
    with pytest.raises(CorpusError, match="images: there is no directory or zip "):
        Pictures(packed, "images")
    packed.write_bytes(b"no zip")
    with pytest.raises(CorpusError, match="is neither a directory nor a whole zip file"):
        Pictures(packed, "images")
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.jpg", b"a cat on a mat")
    content = packed.read_bytes()
    packed.write_bytes(content.replace(b"a cat", b"a rat"))
    with pytest.raises(CorpusError, match=r"picture 'a\.jpg' of .* cannot be read"):
        Pictures(packed, "images").read("a.jpg")

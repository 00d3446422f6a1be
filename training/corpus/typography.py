"""What people write and a training text does not: typographic quotes and dashes, other line ends, other blanks.

A model of characters or words has never seen them, and would read `<unk>`. So they are taken for what the training text
has in their place, by the tokenizer itself: its normaliser is part of tokenizer.json, and of the bundle.
"""

from __future__ import annotations

import re
import unicodedata

from tokenizers import Regex, normalizers

_ALIKE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("\r\v\f\x85\u2028\u2029", ("\n",)),
    ("\t\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", (" ",)),
    ("\xad\u200b\u200c\u200d\u200e\u200f\u2060\ufe0e\ufe0f\ufeff", ("",)),
    ("\u2018\u2019\u201a\u201b\u2032\u02bc`\xb4", ("'",)),
    ("\u201c\u201d\u201e\u201f\u2033\xab\xbb", ('"', "'")),
    ('"', ("'",)),
    ("\u2010\u2011\u2012\u2013\u2212", ("-",)),
    ("\u2014\u2015", ("--", "-")),
    ("\u2026", ("...",)),
)
"""Characters, and what may stand for each of them: the first that the training text has, or could spell."""


def normalizer_for(text: str) -> normalizers.Normalizer | None:
    """What a tokenizer of this training text does to a text first; it changes nothing of the training text itself.

    Composed characters (NFC) where all of the training text's are; and for what it lacks, what it has in its place.
    None where there is nothing to do.
    """
    known = set(text)
    steps: list[normalizers.Normalizer] = []
    if not text.isascii() and unicodedata.is_normalized("NFC", text):
        steps.append(normalizers.NFC())
    groups: dict[str, str] = {}
    for characters, stand_ins in _ALIKE:
        lacking = "".join(character for character in characters if character not in known)
        spelt = [each for each in stand_ins if known.issuperset(each)]
        stand_in = next((each for each in spelt if each in text), spelt[0] if spelt else None)
        if lacking and stand_in is not None:
            groups[stand_in] = groups.get(stand_in, "") + lacking
    for stand_in, lacking in groups.items():
        pattern = f"[{re.escape(lacking)}]"
        if "\r" in lacking:
            pattern = f"\r\n|{pattern}"  # one line's end, not two
        steps.append(normalizers.Replace(Regex(pattern), stand_in))
    return normalizers.Sequence(steps) if steps else None

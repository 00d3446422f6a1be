#!/bin/sh
# tokenizers 0.23.3: DecodeStream takes a character U+FFFD for bytes of a character that is not whole yet. A text that ends
# in one never comes out, while decode() of the same ids gives it back. Whoever streams tokens to clients loses the character,
# and stop strings and offsets that count on it. Python's incremental UTF-8 decoder, fed with the tokens' bytes, does not.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import codecs

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()

text = "a\ufffd"
ids = tokenizer.encode(text).ids
stream = DecodeStream()
streamed = "".join(stream.step(tokenizer, token) or "" for token in ids)
utf8 = codecs.getincrementaldecoder("utf-8")("replace")
by_bytes = "".join(utf8.decode(bytes([byte])) for byte in text.encode())
print(f"decode: {tokenizer.decode(ids)!a}   streamed: {streamed!a}   by bytes: {by_bytes!a}")
assert tokenizer.decode(ids) == text, "decode() no longer gives the text back"
assert streamed == "a", "DecodeStream gives the character out now"
assert by_bytes == text
PYTHON

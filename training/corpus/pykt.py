"""pyKT's preprocessed files (Liu et al. 2022): a row per learner, or per piece of one, with comma-separated lists.

    fold,uid,concepts,responses
    0,16894,"19,19,7_12","0,1,0"

A concept `7_12` is one answer that took two skills. Files in which pyKT has spread such an answer over several entries
mark those after the first in the column `is_repeat`. Either is one attempt at a combined skill (see rows.py). An entry
of -1 fills a piece up to its fixed length and is no answer. The rows of one `uid` are one learner, in the file's order.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.corpus.rows import table
from training.corpus.transcript import Transcript, combine, read_correct
from training.errors import CorpusError

PADDING = "-1"


def read_pykt(texts: Sequence[tuple[str, str]]) -> list[Transcript]:
    """The learners of some files.

    Args:
        texts: (file, content) each.

    Raises:
        CorpusError: naming file and line.
    """
    learners: dict[str, tuple[list[set[str]], list[bool]]] = {}
    for file, text in texts:
        for where, row in table(file, text, ["uid", "concepts", "responses"]):
            lists = {name: row[name].split(",") for name in ("concepts", "responses", "is_repeat") if row.get(name, "")}
            if len({len(cells) for cells in lists.values()}) > 1:
                counts = ", ".join(f"{name} {len(cells):,}" for name, cells in lists.items())
                raise CorpusError(f"{where}: lists of one row differ in length ({counts})")
            skills, correct = learners.setdefault(row["uid"].strip(), ([], []))
            repeats = lists.get("is_repeat", ["0"] * len(lists.get("concepts", [])))
            for concept, response, repeat in zip(
                lists.get("concepts", []), lists.get("responses", []), repeats, strict=True
            ):
                if concept.strip() == PADDING:
                    continue
                parts = {part.strip() for part in concept.split("_")}
                if "" in parts:
                    raise CorpusError(f"{where}: a concept is {concept!r}; allowed is an id, or several joined by '_'")
                right = read_correct(response, where)
                if repeat.strip() == "1" and skills:
                    if right != correct[-1]:
                        raise CorpusError(
                            f"{where}: a repeated entry is right where its answer is wrong, or the reverse"
                        )
                    skills[-1] |= parts
                else:
                    skills.append(parts)
                    correct.append(right)
    return [
        Transcript(name, [combine(parts) for parts in skills], correct)
        for name, (skills, correct) in learners.items()
        if skills
    ]

"""Interactions <-> ids: what a learner tried, and whether it was right, as one number per attempt.

Axes: S skills. An attempt's id is `2 * skill + correct`, in [0, 2 S): one int64 per row and step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from carousel.models.codec.ids import below
from carousel.models.codec.names import MAX_NAME_CHARACTERS, check_names, names_of, to_json
from carousel.models.codec.spec import CODECS, Array, FileCodecSpec, Ids, text_of
from carousel.models.codec.spelling import one_id
from carousel.models.errors import UnknownSkill
from carousel.models.graph import TensorSpec

COMBINED = " & "
"""Between the names of the skills that one answer took together."""


def combined_skill(names: Iterable[str]) -> str:
    """The one skill of an answer that took several: an answer is one attempt, so that no part of it predicts another.

    Each name once, sorted: "Area & Perimeter".
    """
    return COMBINED.join(sorted(set(names)))


@CODECS.register("interaction")
class InteractionCodecSpec(FileCodecSpec):
    """Attempts in, P(correct) of the next one out, over a list of skills."""

    kind: Literal["interaction"] = "interaction"
    file: str = "skills.json"

    def open(self, files: Mapping[str, bytes]) -> InteractionCodec:
        """The codec of the file."""
        return InteractionCodec.from_json(text_of(files, self.file))


class InteractionCodec:
    """An ordered list of skill names; a skill's id is its position.

    Args:
        skills: names, each once: 1 to 500 characters that have a UTF-8 form.

    Raises:
        ValueError: no names, or one that is not allowed.
    """

    id_ports: ClassVar[int] = 2
    """The skill, and whether it was right."""

    def __init__(self, skills: Sequence[object]) -> None:
        self.skills: tuple[str, ...] = check_names("skill", skills)
        """Names, by id."""
        self._ids = {name: place for place, name in enumerate(self.skills)}

    @classmethod
    def from_json(cls, content: str) -> InteractionCodec:
        """The codec of a `skills.json`: a JSON array of names.

        Raises:
            ValueError: the content is anything else.
        """
        return cls(names_of("skill", content))

    @property
    def id_count(self) -> int:
        """See IdCodec."""
        return self.interaction_count

    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """A skill's id or an answer in; a probability for each skill out."""
        allowed = ("int64", ()) if fed else ("float32", (self.skill_count,))
        if (port.dtype, port.shape[1:]) != allowed:
            kind = "an int64 id of them or of an answer" if fed else "a float32 row of them"
            raise ValueError(f"{self.skill_count:,} skills; {port} is not {kind}")

    def join(self, columns: Sequence[Ids]) -> Ids:
        """Attempts of skills and answers."""
        skill, correct = columns
        return 2 * below(skill, self.skill_count, "skill") + below(correct, 2, "answer")

    def enter(self, ids: Ids, ports: Mapping[str, Array]) -> None:
        """Write attempts into the ports of a step in their order: the skill, and whether it was right."""
        skill, correct = ports.values()
        np.right_shift(ids, 1, out=skill)
        np.bitwise_and(ids, 1, out=correct)

    def to_json(self) -> str:
        """The codec as `skills.json`, one name a line."""
        return to_json(self.skills)

    @property
    def skill_count(self) -> int:
        """S."""
        return len(self.skills)

    @property
    def interaction_count(self) -> int:
        """2 S: an attempt's id is below it."""
        return 2 * len(self.skills)

    def skill_id(self, skill: str | int) -> int:
        """The id of a skill, in [0, S), given its name or the id itself.

        A name that is not known as it stands is read as a corpus's is (spelling.one_id): blanks around it, `33.0` and
        `é` of two characters are no other name, nor is `Perimeter & Area` for what is called "Area & Perimeter".

        Raises:
            UnknownSkill: the model has no such skill.
        """
        if isinstance(skill, str):
            found = self._ids.get(skill)
            if found is None:
                found = self._ids.get(combined_skill(map(one_id, skill.split(COMBINED))))
            if found is not None:
                return found
            shown = skill if len(skill) <= MAX_NAME_CHARACTERS else skill[:MAX_NAME_CHARACTERS] + "..."
            raise UnknownSkill(f"there is no skill {shown!r}", self._known())
        if isinstance(skill, int) and not isinstance(skill, bool) and 0 <= skill < len(self.skills):
            return skill
        raise UnknownSkill(f"there is no skill {skill!r}", self._known())

    def encode(self, skill: str | int, correct: bool) -> int:
        """The id of an attempt at a skill, given by name or id.

        Raises:
            UnknownSkill: the model has no such skill.
        """
        return 2 * self.skill_id(skill) + bool(correct)

    def decode(self, attempt: int) -> tuple[int, bool]:
        """The inverse of encode: (skill id, correct).

        Raises:
            ValueError: the id is not in [0, 2 S).
        """
        if not 0 <= attempt < self.interaction_count:
            raise ValueError(f"attempt is {attempt}; allowed are 0 to {self.interaction_count - 1:,}")
        return attempt >> 1, bool(attempt & 1)

    def _known(self) -> str:
        last = len(self.skills) - 1
        return f"this model knows {len(self.skills):,} skills, ids 0 to {last:,}, the first called {self.skills[0]!r}"

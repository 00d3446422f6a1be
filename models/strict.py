"""Settings that people write, read strictly: what is not understood is refused, and in one sentence."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Keys with values, each of a type and in a range; one that is not understood is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def first_wrong(error: ValidationError) -> tuple[list[str], str]:
    """The key that is wrong, as its parts, and what follows its name in a sentence: ` is 0; it should be ...`."""
    first: Any = error.errors()[0]
    key = [str(part) for part in first["loc"]]
    match first["type"]:
        case "extra_forbidden":
            return key, " is not a key"
        case "missing":
            return key, " is missing"
        case "value_error":
            reason = str(first["ctx"]["error"])
            if isinstance(first["input"], dict | BaseModel):  # of several keys together
                return key, f": {reason}"
        case _:
            reason = first["msg"].replace("Input should", "it should")
    return key, f" is {first['input']!r}; {reason}"

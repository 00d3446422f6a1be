"""What a model repository holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from carousel.models.bundle import versions
from carousel.models.errors import BundleError, BundleNotFound
from carousel.models.manifest import NAME_PATTERN


@dataclass(frozen=True, slots=True)
class Listing:
    """What a model repository holds, by model: one directory that cannot be read hides no other."""

    versions: Mapping[str, list[int]]
    """Of each model that has any, ascending; whether they can be served, only opening them says."""
    unreadable: Mapping[str, str]
    """Directories that have a model's name and cannot be listed, and why not."""


def list_repository(repository: Path) -> Listing:
    """The models of a repository, by name.

    Raises:
        BundleNotFound: the repository is no directory.
        BundleError: it cannot be listed.
    """
    holds = "a model repository holds <model>/<version>/ directories"
    try:
        names = sorted(name for name in os.listdir(repository) if re.fullmatch(NAME_PATTERN, name))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFound(f"{repository} is not a directory; {holds}") from None
    except OSError as error:
        raise BundleError(f"{repository} cannot be listed ({error.strerror}); {holds}") from None
    found: dict[str, list[int]] = {}
    unreadable: dict[str, str] = {}
    for name in names:
        try:
            if of_model := versions(repository, name):
                found[name] = of_model
        except BundleError as error:
            unreadable[name] = str(error)
    return Listing(found, unreadable)

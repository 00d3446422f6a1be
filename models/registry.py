"""What can be chosen by name: each choice is a file somewhere in one package, and registers itself there.

A new choice is a new file or directory; no list of them stands anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
Choice = TypeVar("Choice")


class UnknownName(ValueError):
    """Nothing of that name is registered; the sentence begins with what it should be."""


class Registry(Generic[T]):
    """Choices by name.

    Args:
        package: the full name of the package whose modules register themselves. All below it are imported when the
            first choice is asked for, so that they may import whoever holds the registry.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._loaded = False
        self._choices: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Choice], Choice]:
        """A decorator that makes its object the choice `name`."""

        def add(choice: Choice) -> Choice:
            assert name not in self._choices, f"{name} is registered twice"
            self._choices[name] = choice  # type: ignore[assignment]  # a Choice is a T, which Python cannot bound so
            return choice

        return add

    @property
    def choices(self) -> dict[str, T]:
        """All that there are, by name."""
        if not self._loaded:
            self._loaded = True
            for root in map(Path, import_module(self._package).__path__):
                for file in sorted(root.rglob("*.py")):
                    import_module(".".join([self._package, *file.relative_to(root).with_suffix("").parts]))
        return self._choices

    def __getitem__(self, name: str) -> T:
        """The choice of that name.

        Raises:
            UnknownName: there is none.
        """
        return self.choices[self.known(name)]

    def __iter__(self) -> Iterator[str]:
        """The names, in alphabetical order."""
        return iter(sorted(self.choices))

    def name_of(self, choice: T) -> str:
        """The inverse of []."""
        return next(name for name, other in self.choices.items() if other is choice)

    def known(self, name: str) -> str:
        """The name itself, where there is such a choice.

        Raises:
            UnknownName: there is none.
        """
        if name in self.choices:
            return name
        *others, last = [repr(choice) for choice in self]
        allowed = f"{', '.join(others)} or {last}" if others else last
        near = get_close_matches(name, self, 1)
        raise UnknownName(f"it should be {allowed}" + (f" (perhaps {near[0]!r}?)" if near else ""))

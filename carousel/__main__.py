"""`carousel COMMAND ...`, installed or as `python -m carousel`: what each room's own `python -m` does."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from carousel import __version__


class Command(NamedTuple):
    """Where a command is run: a room's `main(arguments, prog=...)`, and what goes before the caller's arguments."""

    room: str
    does: str
    first: tuple[str, ...] = ()


COMMANDS = {
    "serve": Command("service", "serve a repository of bundles"),
    "train": Command("training", "train a model as a recipe says"),
    "export": Command("export", "publish a checkpoint as a bundle"),
    "adopt": Command("export.adopt", "make a bundle of a network that others made"),
    "run": Command("service", "run a model over a whole file of rows", ("run",)),
    "trace": Command("service", "predict every answer of a cohort from a file", ("trace",)),
    "key": Command("service", "make an API key", ("key",)),
}

NEEDS_TRAIN = {"torch", "tensorboard", "onnx", "onnxscript", "safetensors", "nltk", "sacrebleu"}
"""What only the extra `train` installs, and a command may import."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status; 2 where it needs an extra that is not installed."""
    options = _parser().parse_args(arguments)
    command = COMMANDS[options.command]
    # A room whose command takes a first word of its own writes it behind the name itself.
    prog = "carousel" if command.first else f"carousel {options.command}"
    try:
        room: Any = importlib.import_module(f"carousel.{command.room}.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDS_TRAIN:
            raise
        print(f"{prog}: needs {error.name}; install Carousel with its extra: pip install '.[train]'", file=sys.stderr)
        return 2
    status: int = room.main([*command.first, *options.arguments], prog=prog)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="carousel",
        description="Train, export and serve recurrent models.",
        epilog="\n".join(f"  {name:<8}{command.does}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"carousel {__version__}")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the below; each has its own --help"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's")
    return parser


if __name__ == "__main__":
    sys.exit(main())

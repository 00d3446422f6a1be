"""`python -m service`: serve the model repository.

`python -m service trace` predicts a whole cohort from a file; `python -m service key` makes an API key.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from carousel.models.errors import CarouselError
from carousel.service.api.task import TASKS, Command
from carousel.service.engine.session import RunnerBroken
from carousel.service.keys.key_file import KeyFileError, key_line, new_key
from carousel.service.observability import logs
from carousel.service.served.heap import keep_large_pieces_apart, share_arenas
from carousel.service.server.server import create_server
from carousel.service.settings import PREFIX, Settings, unknown_variables

logger = logging.getLogger("carousel")

FLAGS = ("host", "port", "repository")
"""Settings that the command line may say, too; its word goes before the environment's."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m service") -> int:
    """Serve until SIGTERM or SIGINT, trace a cohort or make a key. Returns the exit status."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in FLAGS if getattr(options, name) is not None}
    if idle := given.keys() - {"key": set(), None: FLAGS}.get(options.command, {"repository"}):
        parser.error(f"--{min(idle)} says nothing to {options.command}")
    if options.command == "key":
        return _key(options)
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(map(str, problem["loc"]))
            told = problem["msg"].removeprefix("Value error, ")
            print(f"{f'--{name}' if name in given else PREFIX + name.upper()}: {told}", file=sys.stderr)
        return 2
    logs.install(settings.log_level, settings.log_format)
    # Not refused: a cluster gives every container variables that begin with the name of each of its services.
    if unknown := unknown_variables(os.environ):
        logger.warning("%s", unknown)
    try:
        command = _commands().get(options.command)
        return _serve(settings) if command is None else command.run(settings, options)
    except (CarouselError, RunnerBroken, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Serve the model repository, as the CAROUSEL_ variables say."
    )
    parser.add_argument("--host", help="address to listen on, instead of CAROUSEL_HOST")
    parser.add_argument("--port", help="port to listen on, instead of CAROUSEL_PORT; 0 takes a free one")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="instead of CAROUSEL_REPOSITORY")
    commands = parser.add_subparsers(dest="command", title="instead of serving", metavar="")
    for word, command in _commands().items():
        command.add_arguments(commands.add_parser(word, help=command.help, description=command.description))
    key = commands.add_parser(
        "key",
        help="make an API key",
        description="Make an API key. The line for CAROUSEL_API_KEYS_FILE goes to standard output; the key itself, "
        "which nobody can find out again, to standard error.",
    )
    key.add_argument("name", metavar="NAME", help="what logs call the key; each name once in a file")
    key.add_argument("--tenant", required=True, help="whose sessions, state tokens and caches its callers have")
    return parser


def _key(options: argparse.Namespace) -> int:
    key = new_key()
    try:
        line = key_line(options.name, options.tenant, key)
    except KeyFileError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"The key, for whoever is to call; it is shown this once:\n{key}", file=sys.stderr)
    print(line)
    return 0


def _serve(settings: Settings) -> int:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it logs raw paths; what is refused is logged by route
    keep_large_pieces_apart()
    share_arenas()
    server = create_server(settings)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises Ctrl-C again once it has shut down
        server.run()
    return 0 if server.started else 1


def _commands() -> dict[str, Command]:
    """The words that tasks have."""
    return {word: command for name in TASKS for word, command in TASKS[name].commands.items()}


if __name__ == "__main__":
    sys.exit(main())

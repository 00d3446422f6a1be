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
from tqdm import tqdm

from carousel.models.bundle import open_bundle, versions
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.cores import usable_cores
from carousel.models.errors import BundleNotFound, CarouselError
from carousel.models.output_file import check_output
from carousel.service.engine.session import RunnerBroken
from carousel.service.keys.key_file import KeyFileError, key_line, new_key
from carousel.service.observability import logs
from carousel.service.served.heap import keep_large_pieces_apart, share_arenas
from carousel.service.served.opening import step_threads
from carousel.service.server.server import create_server
from carousel.service.settings import PREFIX, Settings, unknown_variables
from carousel.service.work.cohort import trace_cohort
from carousel.service.work.cohort_file import CohortError, read_cohort

logger = logging.getLogger("carousel")

FLAGS = ("host", "port", "repository")
"""Settings that the command line may say, too; its word goes before the environment's."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m service") -> int:
    """Serve until SIGTERM or SIGINT, trace a cohort or make a key. Returns the exit status."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in FLAGS if getattr(options, name) is not None}
    if idle := given.keys() - {"trace": {"repository"}, "key": set(), None: FLAGS}[options.command]:
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
        return _trace(settings, options) if options.command == "trace" else _serve(settings)
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
    trace = commands.add_parser(
        "trace",
        help="predict every answer of a cohort from a file",
        description="Predict every answer of a cohort from the same learner's answers before it.",
    )
    trace.add_argument("--model", required=True, help="a tracing model of the repository; its newest version is taken")
    trace.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="CSV",
        help="columns learner, skill, correct; order is that of rows",
    )
    trace.add_argument(
        "--output", required=True, type=Path, metavar="CSV", help="gets learner, attempt, skill, correct, probability"
    )
    # Suppressed, or it would undo a --repository before the word `trace`.
    trace.add_argument(
        "--repository", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="instead of CAROUSEL_REPOSITORY"
    )
    trace.add_argument(
        "--by-id", action="store_true", help="skills are ids (places in the model's list, from 0), not names"
    )
    trace.add_argument(
        "--unknown-skill",
        choices=("error", "ignore"),
        default="error",
        help="about answers at skills that the model does not know (default: error)",
    )
    trace.add_argument(
        "--answer",
        metavar="COLUMN",
        help="a column of the input; a learner's rows that share it are one answer, an attempt at a combined skill",
    )
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


def _trace(settings: Settings, options: argparse.Namespace) -> int:
    check_output(options.output, inputs=[options.input])
    repository = settings.repository
    found = versions(repository, options.model)
    if not found:
        raise BundleNotFound(f"{repository} holds no model {options.model!r}; publish one with python -m export")
    bundle = open_bundle(repository / options.model / str(found[-1]))
    if bundle.manifest.task != "tracing":
        raise CohortError(f"{options.model} is a {bundle.manifest.task} model; trace needs a tracing model")
    cohort = read_cohort(
        options.input,
        bundle.codec(InteractionCodec),
        by_id=options.by_id,
        ignore_unknown=options.unknown_skill == "ignore",
        answer_column=options.answer,
    )
    for remark in cohort.remarks:
        print(f"{options.input}: {remark}", file=sys.stderr)
    with tqdm(total=cohort.answers, unit=" answers", desc=options.model) as bar:
        trace_cohort(
            bundle,
            cohort,
            options.output,
            max_rows=settings.max_rows,
            intra_op_threads=settings.intra_op_threads or step_threads(bundle, usable_cores()),
            by_id=options.by_id,
            on_answers=bar.update,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

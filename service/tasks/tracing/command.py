"""`python -m service trace`: predict a whole cohort from a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from carousel.models.bundle import open_bundle, versions
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.cores import usable_cores
from carousel.models.errors import BundleNotFound
from carousel.models.output_file import check_output
from carousel.service.api.task import Command
from carousel.service.served.opening import step_threads
from carousel.service.settings import Settings
from carousel.service.tasks.tracing.cohort import trace_cohort
from carousel.service.tasks.tracing.cohort_file import CohortError, read_cohort


def _add_arguments(trace: argparse.ArgumentParser) -> None:
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


def _run(settings: Settings, options: argparse.Namespace) -> int:
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
        print(f"{options.input}: {remark}", file=sys.stderr)  # noqa: T201 (of a command)
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


TRACE = Command(
    help="predict every answer of a cohort from a file",
    description="Predict every answer of a cohort from the same learner's answers before it.",
    add_arguments=_add_arguments,
    run=_run,
)

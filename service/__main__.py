"""`python -m service`: serve the model repository."""

from __future__ import annotations

import contextlib
import logging
import sys

from pydantic import ValidationError

from models.errors import CarouselError
from service.engine.runner import RunnerBroken
from service.server import create_server
from service.settings import Settings


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "CAROUSEL_" + "_".join(map(str, problem["loc"])).upper()
            print(f"{name}: {problem['msg']}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it logs raw paths; requests are logged by route
    try:
        server = create_server(settings)
    except (CarouselError, RunnerBroken) as error:
        print(error, file=sys.stderr)
        return 1
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises Ctrl-C again once it has shut down
        server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())

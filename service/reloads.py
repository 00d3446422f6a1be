"""Versions that come and go while the server runs: loaded, verified and warm before anybody is given them.

    load      the newest version in the repository, or the one asked for, which may be an older one
    unload    serve a model no more
    look      load what has been published since the last look; what `CAROUSEL_WATCH_SECONDS` does

One that must not be served is refused, and what was served goes on. A model whose directory is gone goes on too: what
is served are verified bytes in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from models.bundle import model_names, versions
from models.errors import BundleError
from service.engine.runner import RunnerBroken
from service.errors import RequestError
from service.observability.metrics import Metrics
from service.repository import Refusal, Repository, ServedModel

logger = logging.getLogger("carousel.reloads")

_Stamp = tuple[tuple[str, int, int, int], ...]


class Reloads:
    """Loads and unloads models, one at a time. Belongs to the event loop.

    Args:
        repository: what is served.
        root: the directory that is looked at.
        metrics: counts.
        watch_seconds: time between two looks; 0 never looks.
    """

    def __init__(self, repository: Repository, root: Path, metrics: Metrics, watch_seconds: float) -> None:
        self._repository = repository
        self._root = root
        self._metrics = metrics
        self._watch_seconds = watch_seconds
        self._lock = asyncio.Lock()
        for name in repository.models:  # from 0 on: what appears with its first event has no rate then
            for result in ("ok", "refused"):
                metrics.model_reloads.labels(name, result)
            metrics.model_refused.labels(name).set(name in repository.refusals)
        self._decided = {name: model.bundle.version for name, model in repository.models.items()}
        """The newest version, when it was last said what is to be served: looking must not undo a rollback."""
        self._refused_files: dict[str, _Stamp] = {}
        """What a version consisted of when a look found it bad: it may have been half copied."""
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, where that is wanted."""
        if self._watch_seconds:
            self._watching = asyncio.create_task(self._watch(), name="reloads")

    async def close(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def load(self, name: str, version: int | None = None) -> ServedModel:
        """Serve a version from now on; nothing happens where it is served already, and runs.

        Args:
            name: of the model, which need not be served.
            version: the newest, where none is given.

        Raises:
            RequestError: unknown_model, unknown_version, or bundle_refused: then what was served goes on.
        """
        async with self._lock:
            found = (await self.published()).get(name)
            if found is None:
                raise RequestError("unknown_model", f"no model {name[:100]!r} is in the repository")
            if version is not None and version not in found:
                raise RequestError(
                    "unknown_version",
                    f"{name} has no version {version} in the repository; it has {', '.join(map(str, found))}",
                )
            model = await self._load(name, found[-1] if version is None else version)
            self._decided[name] = max(found)
            return model

    async def unload(self, name: str) -> ServedModel:
        """Serve a model no more; what runs of it ends by itself.

        Raises:
            RequestError: unknown_model.
        """
        async with self._lock:
            model = self._repository.get(name)
            self._decided[name] = max([model.bundle.version, *(await self.published()).get(name, ())])
            self._repository.withdraw(name)
            self._settle(name)
            logger.info("%s version %d is unloaded", name, model.bundle.version)
            return model

    async def look(self) -> None:
        """Load each model's newest version, if it is newer than what there was when it was last decided."""
        for name, found in (await self.published()).items():
            version = found[-1]
            if version <= self._decided.get(name, 0):
                continue
            files = await asyncio.to_thread(_stamp, self._root / name / str(version))
            if self._refused_files.get(name) == files:
                continue
            try:
                await self.load(name, version)
                self._refused_files.pop(name, None)
            except RequestError:
                self._refused_files[name] = files

    async def published(self) -> dict[str, list[int]]:
        """The versions of each model that the repository holds, ascending."""
        return await asyncio.to_thread(_published, self._root)

    async def _load(self, name: str, version: int) -> ServedModel:
        served = self._repository.models.get(name)
        path = self._root / name / str(version)
        try:
            model = await asyncio.to_thread(self._repository.open, path, served)
        except Exception as error:
            if not isinstance(error, BundleError | RunnerBroken):
                logger.exception("%s version %d cannot be loaded", name, version)
            self._metrics.model_reloads.labels(name, "refused").inc()
            goes_on = "" if served is None else f"; version {served.bundle.version} goes on"
            reason = f"{name} version {version} cannot be served: {error}{goes_on}"
            self._repository.refusals[name] = Refusal(version, str(error))
            self._metrics.model_refused.labels(name).set(1)
            logger.error("%s", reason)
            raise RequestError("bundle_refused", reason) from None
        self._settle(name)
        if model is not served:
            self._repository.serve(model)
            self._metrics.model_reloads.labels(name, "ok").inc()
            before = "" if served is None else f" in place of {served.bundle.version}"
            logger.info("serving %s version %d%s", name, version, before)
        return model

    def _settle(self, name: str) -> None:
        """What is served is what was asked for: forget what was refused."""
        self._repository.refusals.pop(name, None)
        self._metrics.model_refused.labels(name).set(0)

    async def _watch(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(self._watch_seconds)
            try:
                await self.look()
                complaint = ""
            except Exception as error:  # a look that fails must not be the last
                if repr(error) != complaint:
                    complaint = repr(error)
                    logger.exception("the repository %s could not be looked at", self._root)


def _published(root: Path) -> dict[str, list[int]]:
    with contextlib.suppress(BundleError):  # the directory is gone: what is served goes on
        return {name: versions(root, name) for name in model_names(root)}
    return {}


def _stamp(directory: Path) -> _Stamp:
    entries = []
    for entry in os.scandir(directory):
        status = entry.stat()
        entries.append((entry.name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(sorted(entries))

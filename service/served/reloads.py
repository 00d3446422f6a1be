"""Versions that come and go while the server runs: loaded, verified and warm before anybody is given them.

    load      the newest version in the repository, or the one asked for, which may be an older one
    unload    serve a model no more
    look      load what has been published since the last look; what `CAROUSEL_WATCH_SECONDS` does

One that must not be served is refused, and what was served goes on. A model whose directory is gone goes on too: what
is served are verified bytes in memory. A directory that cannot be read, or holds nonsense, hides no other.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from carousel.models.errors import BundleError
from carousel.models.listing import Listing, list_repository
from carousel.service.errors import RequestError
from carousel.service.observability.metrics import Metrics
from carousel.service.served.repository import Refusal, Repository, ServedModel

logger = logging.getLogger("carousel.reloads")

_Stamp = tuple[tuple[str, int, int, int, int], ...]


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
        for name in {
            *repository.models,
            *repository.refusals,
        }:  # from 0 on: what appears with its first event has no rate then
            for result in ("ok", "refused"):
                metrics.model_reloads.labels(name, result)
            metrics.model_refused.labels(name).set(name in repository.refusals)
        self._decided = {name: model.bundle.version for name, model in repository.models.items()}
        """The newest version, when it was last said what is to be served: looking must not undo a rollback."""
        self._refused_files: dict[str, dict[int, _Stamp]] = {}
        """What versions consisted of when a look found them bad: they may have been half copied."""
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
            listing = await self.published()
            if name in listing.unreadable:
                raise RequestError("bundle_refused", f"{name} cannot be loaded: {listing.unreadable[name]}")
            found = listing.versions.get(name)
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
            found = (await self.published()).versions.get(name, [])
            self._decided[name] = max([model.bundle.version, *found])
            self._repository.withdraw(name)
            self._settle(name)
            logger.info("%s version %d is unloaded", name, model.bundle.version)
            return model

    async def look(self) -> None:
        """Load of each model the newest version that can be, if it is newer than when it was last decided.

        Raises:
            BundleError: the repository is gone, or cannot be listed. What is served goes on.
        """
        listing = await asyncio.to_thread(list_repository, self._root)
        for name, reason in listing.unreadable.items():
            if self._repository.refusals.get(name) != Refusal(None, reason):
                self._refuse(name, self._repository.refusal(name, None, reason))
        for name, refusal in list(self._repository.refusals.items()):
            if refusal.version is None and name not in listing.unreadable:  # its directory can be listed again
                self._settle(name)
        for name, found in listing.versions.items():
            async with self._lock:
                await self._look_at(name, found)

    async def published(self) -> Listing:
        """What the repository holds; nothing where it is gone: what is served goes on."""
        try:
            return await asyncio.to_thread(list_repository, self._root)
        except BundleError:
            return Listing({}, {})

    async def _look_at(self, name: str, found: list[int]) -> None:
        """Load the newest of these versions that can be. What was found bad is tried again when its files change."""
        before = self._refused_files.pop(name, {})
        bad: dict[int, _Stamp] = {}
        refusal = self._repository.refusals.get(name)
        for version in reversed(found):
            if version <= self._decided.get(name, 0):
                break
            files = await asyncio.to_thread(_stamp, self._root / name / str(version))
            if before.get(version) != files:
                try:
                    await self._load(name, version)
                    self._decided[name] = version
                    break
                except RequestError:
                    if not bad:
                        refusal = self._repository.refusals[name]
            bad[version] = files
        if bad:
            self._refused_files[name] = bad
            if refusal is not None:  # of the newest, whichever older one is served in its place
                self._refuse(name, refusal)

    async def _load(self, name: str, version: int) -> ServedModel:
        served = self._repository.models.get(name)
        path = self._root / name / str(version)
        try:
            model = await asyncio.to_thread(self._repository.open, path, served)
        except Exception as error:
            self._metrics.model_reloads.labels(name, "refused").inc()
            refusal = self._repository.refusal(name, version, error)
            self._refuse(name, refusal)
            goes_on = "" if served is None else f"; version {served.bundle.version} goes on"
            reason = f"{name} version {version} cannot be served: {refusal.reason}{goes_on}"
            raise RequestError("bundle_refused", reason) from None
        self._settle(name)
        if model is not served:
            self._repository.serve(model)
            self._metrics.model_reloads.labels(name, "ok").inc()
            before = "" if served is None else f" in place of {served.bundle.version}"
            logger.info("serving %s version %d%s", name, version, before)
        return model

    def _refuse(self, name: str, refusal: Refusal) -> None:
        self._repository.refusals[name] = refusal
        self._metrics.model_refused.labels(name).set(1)

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
                    unexpected = None if isinstance(error, BundleError) else error
                    logger.error("the repository could not be looked at: %s", error, exc_info=unexpected)


def _stamp(directory: Path) -> _Stamp:
    """What tells whether a version has changed; of one that cannot be read, that it cannot."""
    entries = []
    try:
        for entry in os.scandir(directory):
            status = entry.stat(follow_symlinks=False)  # where a link leads nobody looks: it is refused
            entries.append((entry.name, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
    except OSError as error:
        entries.append((type(error).__name__, error.errno or 0, 0, 0, 0))
    return tuple(sorted(entries))

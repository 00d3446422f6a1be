"""Pictures by name, as the bytes of their files, from a directory or a zip."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from carousel.training.errors import CorpusError


class Pictures:
    """A directory or a zip of picture files.

    A picture in a zip may also lie below folders that its name leaves out, if no other file there has that name.

    Args:
        path: the directory, or the .zip file.
        key: of the recipe, for the errors' sentences.

    Raises:
        CorpusError: there is nothing at the path, or it is neither.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self.key = key
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            return
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise CorpusError(
                f"{key}: there is no directory or zip {path}; paths are relative to the current directory"
            ) from None
        except (zipfile.BadZipFile, OSError) as error:
            raise CorpusError(f"{key}: {path} is neither a directory nor a whole zip file ({error})") from None
        paths = [name for name in self._zip.namelist() if not name.endswith("/")]
        counts = Counter(PurePosixPath(name).name for name in paths)
        self._paths = {
            **{PurePosixPath(name).name: name for name in paths if counts[PurePosixPath(name).name] == 1},
            **{name: name for name in paths},
        }

    def read(self, name: str) -> bytes:
        """The bytes of a picture's file. May be called from several threads.

        Raises:
            CorpusError: there is no such picture, or it cannot be read.
        """
        try:
            if self._zip is None:
                return (self._path / name).read_bytes()
            return self._zip.read(self._paths[name])
        except (KeyError, FileNotFoundError):
            raise CorpusError(f"{self.key}: {self._path} has no picture {name!r}, which the captions name") from None
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise CorpusError(f"{self.key}: picture {name!r} of {self._path} cannot be read ({error})") from None

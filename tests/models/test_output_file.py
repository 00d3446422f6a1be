"""Results are written whole or not at all, and through whatever stands at the path."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carousel.models.output_file import OutputError, check_output, descriptor_of, open_output


class Failed(Exception):
    pass


def write(path: Path, content: bytes = b"new", **options: bool) -> None:
    with open_output(path, **options) as file:
        file.write(content)


def fail_in_the_midst_of(path: Path) -> None:
    with open_output(path) as file:
        file.write(b"half")
        raise Failed


def test_output_appears_when_it_is_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    with open_output(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(Failed):
        fail_in_the_midst_of(path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_output_keeps_the_mode_of_what_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("private")
    path.chmod(0o600)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_output_goes_through_links_which_stay(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    one, two, target = tmp_path / "one", tmp_path / "two", tmp_path / "there" / "target"
    one.symlink_to("two")
    two.symlink_to("there/target")
    write(one, b"first")  # there was nothing behind the link yet
    assert target.read_bytes() == b"first"
    write(one)
    assert (one.is_symlink(), two.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_output_to_a_pipe_or_a_device_is_written_in_place(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(pipe.read_bytes)
            write(path)
            assert reader.result(timeout=10) == b"new"
    write(Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert pipe.is_fifo()


def test_output_to_an_open_file_goes_on_where_that_stands(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as log:
        log.write(b"before, ")
        for path in (f"/dev/fd/{log.fileno()}", f"/proc/self/fd/{log.fileno()}", tmp_path / "link"):
            if path == tmp_path / "link":
                path.symlink_to(f"/dev/fd/{log.fileno()}")
            write(Path(path), b"new, ")
        log.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before, new, new, new, after"
    assert (descriptor_of(Path("/dev/stdout")), descriptor_of(tmp_path / "log")) == (1, None)


def test_outputs_that_cannot_be_are_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    for name, sentence in [
        ("", "is a directory; give the path of a file"),
        ("link", "is a directory; give the path of a file"),
        ("no/such/out", "there is no directory .*no/such; make it first, or give another path"),
        ("circle", "its links lead nowhere"),
        ("file/out", "there is no directory|cannot be written to"),
    ]:
        with pytest.raises(OutputError, match=sentence):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match=sentence):
            write(tmp_path / name)
    with pytest.raises(OutputError, match=r"its directory cannot be made \(|cannot be written to \("):
        check_output(tmp_path / "file" / "deep" / "out", make_parents=True)
    check_output(tmp_path / "a" / "b" / "out", make_parents=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_output_does_not_take_the_place_of_what_is_read(tmp_path: Path) -> None:
    read = tmp_path / "in"
    read.write_text("what must stay")
    (tmp_path / "link").symlink_to(read)
    (tmp_path / "hard").hardlink_to(read)
    (tmp_path / "back").symlink_to(tmp_path)
    for name in ("in", "link", "hard", "back/in", "back/../" + tmp_path.name + "/in"):
        with pytest.raises(OutputError, match=r"is .*/in, which the result would replace; give another path"):
            check_output(tmp_path / name, inputs=[tmp_path / "missing", read])
    with pytest.raises(OutputError, match="which the result would replace"):
        check_output(tmp_path / "new", inputs=[tmp_path / "back" / "new"])  # two results that are yet to be
    check_output(tmp_path / "new", inputs=[read, tmp_path])
    check_output(Path("/dev/null"), inputs=[Path("/dev/null")])
    with pytest.raises(OutputError, match="-: is no file; give /dev/stdout for standard output"):
        check_output(Path("-"))

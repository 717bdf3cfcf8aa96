"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import resource
import stat

import pytest

from reuse_tf import files


@contextlib.contextmanager
def full_disk(size):
    """A limit of the size of files: fails in the places of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    files.write(path, b"one")
    assert path.read_bytes() == b"one"
    path.chmod(0o640)
    files.write(str(path), b"two, and longer")
    assert path.read_bytes() == b"two, and longer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_what_was_there_stays_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with full_disk(1000), pytest.raises(OSError) as failure:
        files.write(path, bytes(100_000))
    assert files.explain(failure.value) == f"'{path}': File too large"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    with full_disk(1000), pytest.raises(OSError):
        files.write(tmp_path / "new", bytes(100_000))
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_link_points_to_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("file")
    for content in (b"one", b"two"):
        files.write(tmp_path / "link", content)
        assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()


def test_errors_name_the_file(tmp_path):
    for path, number in (
        (tmp_path, errno.EISDIR),
        (tmp_path / "missing" / "file", errno.ENOENT),
        (tmp_path / ("x" * 300), errno.ENAMETOOLONG),
        ("/dev/full", errno.ENOSPC),
        ("/dev/fd/999", errno.EBADF),
    ):
        with pytest.raises(OSError) as failure:
            files.write(path, b"content")
        assert failure.value.errno == number
        assert failure.value.filename == str(path)


def test_devices_pipes_and_what_is_open(tmp_path):
    files.write("/dev/null", b"content")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    reader, writer = os.pipe()
    files.write(f"/dev/fd/{writer}", b"content")
    os.close(writer)
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    # At the place that it has come to, which moves on.
    with open(tmp_path / "log", "wb", buffering=0) as file:
        file.write(b"before, ")
        files.write(f"/dev/fd/{file.fileno()}", b"content")
        file.write(b", after")
    assert (tmp_path / "log").read_bytes() == b"before, content, after"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space", "x"), "'x': No space"),
        (OSError("cannot\n  write"), "cannot write"),
        (ValueError("expected  more"), "expected more"),
        (ValueError(), "ValueError"),
        (KeyError("seed"), "KeyError 'seed'"),
        (EOFError(), "EOFError"),
    ],
)
def test_an_error_is_explained_in_one_line(error, text):
    assert files.explain(error) == text

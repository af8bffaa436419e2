import errno
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ltrec_jax import storage
from ltrec_jax.errors import UserError


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")
    with pytest.raises(RuntimeError), storage.new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    path = tmp_path / "d"
    with storage.new_directory(path) as directory:
        (directory / "a").write_text("old")
    with pytest.raises(RuntimeError), storage.new_directory(path, replace=True) as directory:
        (directory / "a").write_text("new")
        raise RuntimeError
    assert (path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_directory_is_replaced_only_when_asked(tmp_path):
    with storage.new_directory(tmp_path / "d") as directory:
        (directory / "a").write_text("old")
    with pytest.raises(UserError, match="exists already"), storage.new_directory(tmp_path / "d"):
        pass
    with storage.new_directory(tmp_path / "d", replace=True) as directory:
        (directory / "b").write_text("new")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["b"]


def test_a_full_disk_is_one_clear_line_and_nothing_is_damaged(tmp_path):
    # A file-size limit makes the kernel refuse the write for real, as a full disk would.
    code = f"""
        import resource, signal
        from pathlib import Path
        from ltrec_jax import storage
        from ltrec_jax.errors import UserError
        path = Path({str(tmp_path)!r}) / "x.bin"
        storage.write_bytes(path, b"old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            storage.write_bytes(path, b"x" * 10_000)
        except UserError as error:
            print(error)
        print(path.read_bytes(), [p.name for p in path.parent.iterdir()])
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "Cannot write" in done.stdout
    assert "x.bin" in done.stdout
    assert "b'old' ['x.bin']" in done.stdout


def test_no_space_is_named(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), storage.disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_os_errors_are_not_disguised(tmp_path):
    with pytest.raises(OSError, match="Input/output"), storage.disk_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


def test_content_hash_sees_boundaries_kinds_and_shapes():
    hashes = [
        storage.content_hash("ab", "c"),
        storage.content_hash("a", "bc"),
        storage.content_hash(b"ab", "c"),
        storage.content_hash(np.arange(4)),
        storage.content_hash(np.arange(4).reshape(2, 2)),
        storage.content_hash(np.arange(4, dtype=np.int32)),
        storage.content_hash({"b": 1, "a": 2}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert storage.content_hash({"a": 2, "b": 1}) == hashes[-1]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not numpy"])
def test_damaged_arrays_and_json_are_named(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy is damaged"):
        storage.read_array(tmp_path / "a.npy")
    (tmp_path / "a.json").write_bytes(content + b"{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        storage.read_json(tmp_path / "a.json")


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged"):
        storage.read_array(tmp_path / "a.npy")


def test_missing_files_are_named(tmp_path):
    for read in (storage.read_json, storage.read_array):
        with pytest.raises(UserError, match="gone is missing"):
            read(tmp_path / "gone")


def test_a_held_lock_makes_the_second_wait_and_give_up(tmp_path):
    waited = []
    with (
        storage.lock(tmp_path / "l"),
        pytest.raises(UserError, match="Another process"),
        storage.lock(tmp_path / "l", on_wait=lambda: waited.append(1), timeout=0.1),
    ):
        pass
    assert waited == [1]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_lock_is_taken_only_where_it_is_free(tmp_path):
    with storage.lock(tmp_path / "a.lock"), storage.lock_if_free(tmp_path / "a.lock") as free:
        assert not free
    with storage.lock_if_free(tmp_path / "a.lock") as free:
        assert free
        with storage.lock_if_free(tmp_path / "a.lock") as twice:
            assert not twice


def test_a_removed_directory_stays_readable_where_it_is_mapped(tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "v.npy", np.arange(5))
    mapped = storage.read_array(tmp_path / "a" / "v.npy", mapped=True)
    storage.remove_directory(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(mapped, np.arange(5))

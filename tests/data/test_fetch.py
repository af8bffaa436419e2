import gzip
import hashlib
import http.server
import io
import json
import re
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ltrec_jax.data import fetch, mirrors
from ltrec_jax.errors import UserError

DATA = bytes(range(256)) * 400
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LTREC_OFFLINE", raising=False)
    return tmp_path / "cache"


class Server:
    """Serves `files` by path; counts requests; breaks a download off after `cut` bytes once."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut: int | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                outer.requests.append((self.path, asked))
                body = outer.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                etag = '"' + hashlib.sha256(body).hexdigest() + '"'
                start = 0
                if asked and self.headers["If-Range"] == etag:
                    start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))  # type: ignore[union-attr]
                self.send_response(206 if start else 200)
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                rest, outer.cut = body[start:][: outer.cut], None
                self.wfile.write(rest)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tar_bytes(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        if link:
            entry = tarfile.TarInfo(link[0])
            entry.type, entry.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(entry)
    return stream.getvalue()


def plain(server: Server, sha: str | None = SHA) -> fetch.Artifact:
    return fetch.Artifact("thing", {"data.bin": sha}, (fetch.Url(f"{server.url}/data.bin", {"data.bin": "data.bin"}),))


def test_a_second_call_needs_no_network(server: Server) -> None:
    server.files["/data.bin"] = DATA
    folder = fetch.fetch(plain(server))
    assert (folder / "data.bin").read_bytes() == DATA
    assert not list((folder.parent / ".partial").iterdir())
    assert fetch.fetch(plain(server), offline=True) == folder
    assert len(server.requests) == 1


def test_archives_give_their_members_and_nothing_else(server: Server) -> None:
    server.files["/a.zip"] = zip_bytes({"top/one.txt": b"one", "../../evil": b"evil", "other": b"other"})
    server.files["/a.tar.gz"] = tar_bytes({"top/two.txt": b"two", "/abs": b"evil"})
    server.files["/a.gz"] = gzip.compress(b"three")
    artifact = fetch.Artifact(
        "several",
        dict.fromkeys(("one", "deep/two", "three", "four.gz")),
        (
            fetch.Together(
                (
                    fetch.Url(f"{server.url}/a.zip", {"one": "top/one.txt"}),
                    fetch.Url(f"{server.url}/a.tar.gz", {"deep/two": "top/two.txt"}),
                    fetch.Url(f"{server.url}/a.gz", {"three": "a"}),
                    fetch.Url(f"{server.url}/a.gz", {"four.gz": "a.gz"}),
                )
            ),
        ),
    )
    folder = fetch.fetch(artifact)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}
    assert found == {"one", "deep/two", "three", "four.gz"}
    assert [(folder / name).read_bytes() for name in ("one", "deep/two", "three")] == [b"one", b"two", b"three"]
    assert gzip.decompress((folder / "four.gz").read_bytes()) == b"three"
    assert not list(folder.parent.parent.rglob("evil"))


@pytest.mark.parametrize("relative", ["../out", "/etc/out", "a/../../out", "", "c:/out", "a\\..\\out"])
def test_files_cannot_leave_the_folder(relative: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        fetch.Artifact("thing", {relative: None}, ())
    with pytest.raises(ValueError, match="not a path inside"):
        fetch.Artifact(relative, {"a": None}, ())


def test_links_in_archives_are_refused(server: Server) -> None:
    server.files["/a.tar.gz"] = tar_bytes({}, link=("top", "/etc/hosts"))
    artifact = fetch.Artifact("thing", {"top": None}, (fetch.Url(f"{server.url}/a.tar.gz", {"top": "top"}),))
    with pytest.raises(UserError, match="not a plain file"):
        fetch.fetch(artifact)


def test_mirrors_are_tried_in_order_and_every_reason_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"data.bin": "data.bin"}
    server.files["/broken.zip"] = b"PK\x03\x04 no archive"
    server.files["/empty.zip"] = zip_bytes({"other": b""})
    monkeypatch.setenv("LTREC_TEST_FOLDER", str(tmp_path))
    bad = (
        fetch.Url("http://127.0.0.1:9/data.bin", members),
        fetch.Url(f"{server.url}/missing", members),
        fetch.Url(f"{server.url}/broken.zip", members),
        fetch.Url(f"{server.url}/empty.zip", members),
        fetch.LocalFolder("LTREC_TEST_FOLDER", members),
        fetch.LocalFolder("LTREC_TEST_UNSET", members),
    )
    with pytest.raises(UserError) as raised:
        fetch.fetch(fetch.Artifact("thing", {"data.bin": SHA}, bad))
    message = str(raised.value)
    assert "\n" not in message
    reasons = ("refused", "404", "is damaged", "no member data.bin", f"{tmp_path / 'data.bin'} is missing", "not set")
    places = [message.index(reason) for reason in reasons]
    assert places == sorted(places)
    assert "LTREC_CACHE" in message
    (tmp_path / "data.bin").write_bytes(DATA)
    assert fetch.fetch(fetch.Artifact("thing", {"data.bin": SHA}, bad)).is_dir()


def test_a_wrong_checksum_sets_the_file_aside_and_goes_on(server: Server, cache: Path) -> None:
    server.files |= {"/bad": b"tampered", "/good": DATA}
    mirrors_ = tuple(fetch.Url(f"{server.url}/{name}", {"data.bin": name}) for name in ("bad", "good"))
    artifact = fetch.Artifact("thing", {"data.bin": SHA}, mirrors_)
    assert (fetch.fetch(artifact) / "data.bin").read_bytes() == DATA
    rejected = list(cache.rglob("*.rejected"))
    assert [path.read_bytes() for path in rejected] == [b"tampered"]

    only_bad = fetch.Artifact("other", {"data.bin": SHA}, mirrors_[:1])
    with pytest.raises(UserError, match=r"wrong SHA-256 of data\.bin.*set aside as"):
        fetch.fetch(only_bad)
    assert not only_bad.directory.exists()


def test_a_broken_download_goes_on_where_it_stopped(server: Server) -> None:
    server.files["/data.bin"] = DATA
    server.cut = 70_000
    with pytest.raises(UserError, match="broke off"):
        fetch.fetch(plain(server))
    assert (fetch.fetch(plain(server)) / "data.bin").read_bytes() == DATA
    assert server.requests == [("/data.bin", None), ("/data.bin", "bytes=70000-")]


def test_a_part_of_another_version_is_thrown_away(server: Server) -> None:
    server.files["/data.bin"] = b"old" * 50_000
    server.cut = 70_000
    with pytest.raises(UserError, match="broke off"):
        fetch.fetch(plain(server))
    server.files["/data.bin"] = DATA
    assert (fetch.fetch(plain(server)) / "data.bin").read_bytes() == DATA


def test_offline_mode_uses_local_mirrors_only(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/data.bin"] = DATA
    monkeypatch.setenv("LTREC_OFFLINE", "1")
    with pytest.raises(UserError, match=r"skipped, offline mode\. Unset LTREC_OFFLINE"):
        fetch.fetch(plain(server))
    assert server.requests == []
    (tmp_path / "data.bin").write_bytes(DATA)
    monkeypatch.setenv("LTREC_TEST_FOLDER", str(tmp_path))
    local = fetch.Artifact(
        "thing", {"data.bin": SHA}, (fetch.LocalFolder("LTREC_TEST_FOLDER", {"data.bin": "data.bin"}),)
    )
    assert (fetch.fetch(local) / "data.bin").read_bytes() == DATA


def test_damage_in_the_cache_is_noticed_and_mended(server: Server) -> None:
    server.files["/data.bin"] = DATA
    artifact = plain(server)
    path = fetch.fetch(artifact) / "data.bin"
    path.write_bytes(DATA[:-1])
    assert not fetch.cached(artifact)
    assert (fetch.fetch(artifact) / "data.bin").read_bytes() == DATA
    path.write_bytes(DATA[:-1] + b"x")
    assert fetch.cached(artifact)
    assert not fetch.cached(artifact, full=True)
    (artifact.directory / ".fetched.json").write_text("{")
    assert not fetch.cached(artifact)
    fetch.fetch(artifact)
    assert fetch.cached(artifact, full=True)


def test_another_declared_checksum_means_another_fetch(server: Server) -> None:
    server.files["/data.bin"] = DATA
    fetch.fetch(plain(server, None))
    assert fetch.cached(plain(server, SHA))
    assert not fetch.cached(plain(server, "0" * 64))


def test_two_callers_at_once_fetch_once(server: Server) -> None:
    server.files["/data.bin"] = DATA
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(fetch.fetch, [plain(server)] * 4))
    assert len(set(folders)) == 1
    assert len(server.requests) == 1


def test_fetch_any_prefers_what_is_cached(server: Server) -> None:
    server.files["/b"] = DATA
    first = fetch.Artifact("a", {"data.bin": None}, (fetch.Url(f"{server.url}/a", {"data.bin": "a"}),))
    second = fetch.Artifact("b", {"data.bin": None}, (fetch.Url(f"{server.url}/b", {"data.bin": "b"}),))
    assert fetch.fetch_any([first, second])[0] is second
    server.files["/a"] = DATA
    assert fetch.fetch_any([first, second])[0] is second
    assert [path for path, _ in server.requests] == ["/a", "/b"]


def make_wheel(folder: Path, members: dict[str, bytes]) -> None:
    info = "toy_data-1.0.dist-info"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_data-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_a_wheel_is_downloaded_by_pip_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "index", {"toy_data/data.bin": DATA})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    artifact = fetch.Artifact(
        "thing", {"data.bin": SHA}, (fetch.Wheel("toy-data", "1.0", {"data.bin": "toy_data/data.bin"}),)
    )
    assert (fetch.fetch(artifact) / "data.bin").read_bytes() == DATA
    assert "toy_data" not in sys.modules
    missing = fetch.Artifact("other", {"data.bin": SHA}, (fetch.Wheel("toy-data", "2.0", {"data.bin": "a"}),))
    with pytest.raises(UserError, match=r"package index \(toy-data 2\.0\): No matching distribution"):
        fetch.fetch(missing)


def test_a_python_without_pip_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors.importlib.util, "find_spec", lambda name: None)
    for mirror in (fetch.Wheel("toy-data", "1.0", {"a": "a"}), fetch.Hub("somebody/thing", {"a": "a"})):
        with pytest.raises(UserError, match=r"has no pip|not installed"):
            fetch.fetch(fetch.Artifact("thing", {"a": None}, (mirror,)))


def test_the_hub_delivers_and_its_failures_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def download(repo: str, member: str, *, local_dir: Path, **_: object) -> str:
        if member == "gone":
            raise hub.errors.LocalEntryNotFoundError("cannot find\nthe file")
        target = local_dir / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(DATA)
        return str(target)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    good = fetch.Artifact("thing", {"data.bin": SHA}, (fetch.Hub("somebody/thing", {"data.bin": "x/y.bin"}),))
    assert (fetch.fetch(good) / "data.bin").read_bytes() == DATA
    bad = fetch.Artifact("other", {"data.bin": SHA}, (fetch.Hub("somebody/thing", {"data.bin": "gone"}),))
    with pytest.raises(UserError, match=r"hub \(somebody/thing\): cannot find the file"):
        fetch.fetch(bad)


def test_a_mirror_that_delivers_too_little_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(b"1")
    monkeypatch.setenv("LTREC_TEST_FOLDER", str(tmp_path))
    artifact = fetch.Artifact(
        "thing", {"one": None, "two": None}, (fetch.LocalFolder("LTREC_TEST_FOLDER", {"one": "one"}),)
    )
    with pytest.raises(UserError, match="did not deliver two"):
        fetch.fetch(artifact)


def test_the_manifest_records_what_was_checked(server: Server) -> None:
    server.files["/data.bin"] = DATA
    recorded = json.loads((fetch.fetch(plain(server, None)) / ".fetched.json").read_text())
    assert recorded == {"data.bin": {"bytes": len(DATA), "sha256": SHA}}

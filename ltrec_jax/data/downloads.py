"""Bytes of one URL to a file, going on where an earlier attempt stopped.

Out of scope: what becomes of the file (`mirrors`), checksums (`fetch`).
"""

import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.data.archives import one_line

BROKEN_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
"""What `download` raises where the server or the way to it fails."""
_CHUNK = 1 << 20
TIMEOUT_SECONDS = 15.0


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, going on where an earlier attempt stopped if the server still has the same bytes.

    The validator (ETag or Last-Modified) of the first attempt lies in `path` + `.json`; without one, or when the
    server has other bytes by now, the download starts again. Raises the errors of urllib.
    """
    notes = path.with_name(path.name + ".json")
    validator: str | None = storage.read_json(notes)["validator"] if notes.is_file() and path.is_file() else None
    have = path.stat().st_size if validator else 0
    headers = {"User-Agent": "ltrec-jax"}
    if validator and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            have = have if answer.status == 206 else 0
            storage.write_json(notes, {"validator": answer.headers["ETag"] or answer.headers["Last-Modified"]})
            _receive(answer, path, have)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # The part is as long as the file or longer than what the server has now: only a fresh start can tell.
        path.unlink()
        notes.unlink()
        download(url, path)
    notes.unlink(missing_ok=True)


def _receive(answer: http.client.HTTPResponse, path: Path, have: int) -> None:
    length = answer.headers["Content-Length"]
    total = have + int(length) if length else None
    name = path.name.split("-", 1)[-1].removesuffix(".part")
    with (
        path.open("ab" if have else "wb") as sink,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, delay=0.5) as bar,
    ):
        while chunk := answer.read(_CHUNK):
            sink.write(chunk)
            bar.update(len(chunk))
            have += len(chunk)
    if total is not None and have != total:
        raise http.client.IncompleteRead(b"", total - have)


def network_reason(error: Exception) -> str:
    """One of `BROKEN_NETWORK` in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off (a new attempt goes on from there)"
    return one_line(str(getattr(error, "reason", None) or error)) or type(error).__name__

"""How a name becomes a directory."""

from pathlib import Path

import pytest

from ltrec_jax.encoder import registry
from ltrec_jax.errors import UserError


def test_an_existing_directory_is_itself(tmp_path: Path) -> None:
    assert registry.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("all-MiniLM-L6-v3", "Did you mean 'all-MiniLM-L6-v2'"),
        ("bert", "Available: all-MiniLM-L6-v2"),
        ("./nowhere", "no directory ./nowhere"),
        ("/nowhere/at/all", "no directory /nowhere/at/all"),
        ("a/b/c", "no directory a/b/c"),
    ],
)
def test_unknown_names(name: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.resolve(name)
    assert part in str(caught.value)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; give the directory"):
        registry.resolve(str(tmp_path / "model.safetensors"))


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("cannot find\nthe host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UserError, match=r"Cannot read 'organisation/name' from the Hugging Face hub.*cannot find the host"
    ):
        registry.resolve("organisation/name")


def test_hub_id_of_a_registry_entry_is_that_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.fetch, "fetch", lambda artifact: tmp_path / artifact.name)
    assert registry.resolve("sentence-transformers/all-MiniLM-L6-v2") == tmp_path / "all-MiniLM-L6-v2"
    assert registry.resolve("all-MiniLM-L6-v2") == tmp_path / "all-MiniLM-L6-v2"


def test_every_entry_declares_hashes_for_what_every_mirror_delivers() -> None:
    for entry in registry.ENCODERS.values():
        assert all(len(digest or "") == 64 for digest in entry.artifact.files.values())
        for mirror in entry.artifact.mirrors:
            assert mirror.members.keys() == entry.artifact.files.keys()

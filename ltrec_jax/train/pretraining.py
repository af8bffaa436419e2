"""Masked-language-model pretraining from end to end: texts and an encoder in, a run directory with an encoder out.

What is reported is measured on texts that were never trained on nor used to stop, always masked in the same ways, in
each of which every text has a word hidden: the start, the control in which the head alone learns for as many steps, and
the pretrained encoder.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ltrec_jax import parallel, plain_settings, processes, storage
from ltrec_jax.data.dataset import Dataset
from ltrec_jax.encoder import catalogue
from ltrec_jax.encoder.bert import initialise
from ltrec_jax.encoder.config import EncoderConfig
from ltrec_jax.encoder.mlm import fresh_head
from ltrec_jax.encoder.mlm_files import load_head
from ltrec_jax.encoder.weights import Encoder, export_weights, load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.parallel import Parallel
from ltrec_jax.text import corpus as corpora
from ltrec_jax.text.corpus import Corpus
from ltrec_jax.text.store import TokenStore
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.text.vocabulary import train_wordpiece
from ltrec_jax.train import cold_items, masked_phase
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.loop import Outcome, Phase, run_phase
from ltrec_jax.train.masked_batches import MaskedSource
from ltrec_jax.train.masked_phase import HeldOut
from ltrec_jax.train.optimizer import rate_at
from ltrec_jax.train.pretrain_config import PretrainConfig
from ltrec_jax.train.pretrain_texts import PretrainTexts, read_texts
from ltrec_jax.train.state import full_params
from ltrec_jax.train.tracking import Nowhere, open_writer
from ltrec_jax.types import MetricWriter, PyTree
from ltrec_jax.version import __version__

PRETRAIN, HEAD_ONLY = "pretrain", "head only"
_STREAMS = {"encoder": 0, "head": 1, PRETRAIN: 2, HEAD_ONLY: 3}
_DRAWS = 4
"""Ways in which every held-out text is masked: a text of ten words has one or two hidden at a time, none has none."""
_SHORTEST_ROW, _ROW_STEP = 32, 16
_POSITIONS = 512


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """`directory` holds the pretrained encoder with its head, as `load_encoder` and transformers read it."""

    directory: Path
    report: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What both trainings share."""

    config: PretrainConfig
    encoder: Encoder
    params: PyTree
    texts: PretrainTexts
    spread: Parallel
    out: Path

    def source(self, tokens: TokenStore, *, measured: bool = False) -> MaskedSource:
        row = max(_SHORTEST_ROW, -(-self.texts.longest // _ROW_STEP) * _ROW_STEP)
        return MaskedSource(
            tokens,
            self.texts.vocabulary,
            batch_tokens=self.config.batch_tokens,
            row_length=min(self.config.row_length, row),
            pad_id=self.encoder.config.pad_token_id,
            mask_share=self.config.mask_share,
            whole_words=self.config.whole_words,
            every_text=measured,
            devices=self.spread.count,
            share=self.spread.share,
            seed=self.config.seed,
        )


def pretrain(
    source: Corpus | Dataset | Sequence[str],
    config: PretrainConfig | None = None,
    out: Path | str = "runs/pretrain",
    *,
    resume: bool = False,
    cold: bool = False,
) -> Pretrained:
    """Train an encoder to guess masked words of a catalogue's texts, and measure what that was worth.

    `source`: a dataset (its items' texts by `config.template`), a list of texts, or a `Corpus`. Equal texts count once;
    texts without words are left out. The run directory gets `pretrain.json` (settings and what the texts were),
    `metrics.jsonl`, `checkpoints/`, `tokens/`, `encoder/` and `report.json`. `resume` goes on from the newest
    checkpoints and ends with the same bits; other settings or other texts are refused, as is a directory that is not
    empty without it. `cold` (datasets alone) also fits a frozen-text head to a cold-items split with the pretrained
    encoder and, unless the run is from scratch, with the original one. Several processes share the run directory and
    end with the same figures.
    """
    config, out = config or PretrainConfig(), Path(out)
    rated = source if isinstance(source, Dataset) else None
    if cold and rated is None:
        raise UserError("Results on cold items need a dataset with ratings, not texts alone.")
    corpus = corpora.of(source, config.template)
    processes.first_makes(lambda: _open_run(out, config, corpus, resume=resume), out / "pretrain.json")
    encoder, head = _start(corpus, config, out)
    texts = read_texts(corpus, load_tokenizer(encoder.directory, encoder.config.vocab_size), encoder, config, out)
    found = fresh_head(encoder.config, _key(config, "head")) if head is None else head
    params = {"encoder": encoder.params, "head": jax.tree.map(np.asarray, found)}
    run = _Run(config, encoder, params, texts, parallel.choose_for_run(config.parallel), out)
    held_out = _measure(run, texts.held_out)
    figures, seconds = {"before": held_out(params)}, {}
    outcomes = {}
    writer = open_writer(out, config.track, plain_settings.to_dict(config)) if processes.is_first() else Nowhere()
    with contextlib.closing(writer):
        for name, trainable in ((HEAD_ONLY, masked_phase.NOTHING_BUT_THE_HEAD), (PRETRAIN, config.trainable)):
            started = time.perf_counter()
            outcomes[name] = _train(run, name, trainable, writer)
            seconds[name] = time.perf_counter() - started
            figures[name] = held_out(full_params(outcomes[name].state))
    learnt = jax.tree.map(np.asarray, run.spread.local(full_params(outcomes[PRETRAIN].state)))
    finished = encoder.with_params(learnt["encoder"])
    processes.first_does(lambda: export_weights(finished, out / "encoder", replace=True, head=learnt["head"]))
    report = {
        "texts": texts.describe(corpus),
        "start": {
            "encoder": "from scratch" if config.from_scratch else config.encoder,
            "head": "new" if head is None else "of the checkpoint",
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "vocabulary": encoder.config.vocab_size,
        },
        "held_out": {name.replace(" ", "_"): _plain(each) for name, each in figures.items()},
        "below_head_only": _share_below(figures[PRETRAIN].loss, figures[HEAD_ONLY].loss),
        "vector_cosine": _cosine(encoder, finished, run),
        "epochs": {name.replace(" ", "_"): outcome.epoch for name, outcome in outcomes.items()},
        "reason": outcomes[PRETRAIN].reason,
        "seconds": {name.replace(" ", "_"): value for name, value in seconds.items()},
        "cold_items": cold_items.compare(rated, _original(encoder, config), out, config) if cold and rated else None,
        "settings": plain_settings.to_dict(config),
        "hardware": parallel.describe_hardware(),
        "version": __version__,
    }
    processes.first_does(lambda: storage.write_json(out / "report.json", report))
    return Pretrained(out / "encoder", report)


def _open_run(out: Path, config: PretrainConfig, corpus: Corpus, *, resume: bool) -> None:
    about = {"texts": corpus.name, "fingerprint": corpus.fingerprint, "settings": plain_settings.to_dict(config)}
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty. Choose another directory with --out, or go on in it with --resume.")
        storage.write_json(out / "pretrain.json", about)
        return
    if not (out / "pretrain.json").is_file():
        raise UserError(f"{out} is no pretraining run: it has no pretrain.json. Leave out --resume to start one.")
    if storage.read_json(out / "pretrain.json") != about:
        raise UserError(
            f"{out} was started with other settings or other texts (see its pretrain.json); it cannot be resumed."
        )


def _start(corpus: Corpus, config: PretrainConfig, out: Path) -> tuple[Encoder, PyTree | None]:
    """The encoder to begin with and the head of its checkpoint, if it has one."""
    if config.from_scratch:
        processes.first_does(lambda: _make_small_bert(corpus, config, out))
        return load_encoder(out / "start").with_attention(config.attention), None
    encoder = load_encoder(config.encoder).with_attention(config.attention)
    words = encoder.params["embeddings"]["word_embeddings"]["embedding"]
    return encoder, load_head(encoder.directory, encoder.config, words)


def _make_small_bert(corpus: Corpus, config: PretrainConfig, out: Path) -> None:
    if (out / "start").is_dir():
        return
    pieces = out / "vocabulary"

    def texts() -> Iterator[str]:
        return (text for _, chunk in corpus.chunks() for text in chunk)

    count = train_wordpiece(texts, pieces, size=config.vocabulary, max_length=config.max_length)
    shape = EncoderConfig(
        vocab_size=count,
        hidden_size=config.hidden_size,
        num_layers=config.layers,
        num_heads=config.heads,
        intermediate_size=4 * config.hidden_size,
        position_rows=max(config.max_length, _POSITIONS),
    )
    params = jax.tree.map(np.asarray, initialise(shape, _key(config, "encoder")))
    encoder = Encoder("from scratch", shape, params, pieces, "mean", False, config.max_length, "")
    export_weights(encoder, out / "start", formats=("safetensors",))


def _train(run: _Run, name: str, trainable: str, writer: MetricWriter) -> Outcome:
    config = run.config
    source = run.source(run.texts.train)
    total = config.epochs * source.steps_per_epoch
    peak = config.learning_rate if name == PRETRAIN else config.head_learning_rate
    rate = rate_at(peak, config.rates, total)
    state, step = masked_phase.state_and_step(run.params, run.encoder.config, config, trainable, total, run.spread)
    validation = _measure(run, run.texts.validation)
    # The control runs all epochs, so that it never has fewer steps.
    patience = config.patience if name == PRETRAIN else 0
    with Checkpoints(run.out / "checkpoints" / name.replace(" ", "_"), keep=config.checkpoints) as kept:
        return run_phase(
            Phase(name, config.epochs, patience, config.log_every, masked_phase.MASKED, learning_rate=rate),
            state,
            step=step,
            source=source,
            parallel=run.spread,
            key=run.spread.replicate(_key(config, name)),
            evaluate=lambda state: validation(full_params(state)).loss,
            checkpoints=kept,
            writer=writer,
        )


def _measure(run: _Run, tokens: TokenStore) -> Callable[[PyTree], HeldOut]:
    return masked_phase.make_held_out(
        run.source(tokens, measured=True), _DRAWS, run.encoder.config, run.config.precision, run.spread
    )


def _original(encoder: Encoder, config: PretrainConfig) -> str | None:
    """The name of the checkpoint the run began with; None where that was chance."""
    return None if config.from_scratch else encoder.name


def _share_below(loss: float, other: float) -> float:
    """1 - loss / other; nothing is below a loss of 0, of which a few texts of one word are capable."""
    return 1.0 - loss / other if other > 0.0 else 0.0


def _cosine(before: Encoder, after: Encoder, run: _Run) -> float:
    """Mean cosine of the held-out texts' vectors by both encoders: how far the text space has moved."""
    one, two = (
        catalogue.encode_catalogue(
            each, run.texts.held_out, policy=run.config.precision, spread=run.spread, progress=False
        )
        for each in (before, after)
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(np.mean(np.sum(one * two, axis=1) / np.maximum(norms, 1e-12)))


def _key(config: PretrainConfig, name: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), _STREAMS[name])


def _plain(figures: HeldOut) -> dict[str, float]:
    return dataclasses.asdict(figures) | {"pseudo_perplexity": figures.pseudo_perplexity}

"""What is learnt from: a split's arrays, its item texts as tokens, and the loaded encoder. Built once per fit."""

import dataclasses
import sys

import numpy as np

from ltrec_jax import parallel, processes, storage
from ltrec_jax.config import Config
from ltrec_jax.data.dataset import Dataset, Interactions, Split
from ltrec_jax.data.likes import positive_rating
from ltrec_jax.data.popularity import Popularity, balanced_naive_bayes, popularity
from ltrec_jax.encoder import catalogue
from ltrec_jax.encoder.weights import Encoder, load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.model.head import popularity_gate
from ltrec_jax.objectives.propensity import inverse_propensity_weights, popularity_weights
from ltrec_jax.text import templates
from ltrec_jax.text.lexical import Lexical, fit_lexical
from ltrec_jax.text.store import TokenStore, build_store
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.train.batches import BatchSource, Weights
from ltrec_jax.train.layer_cache import HiddenStates, empty_hidden_states, open_hidden_states
from ltrec_jax.train.state import frozen_layers
from ltrec_jax.train.user_texts import UserTexts

# The cost of attention grows with the row: rows are no longer than the longest text, in few different shapes.
_SHORTEST_ROW, _ROW_STEP = 32, 16


@dataclasses.dataclass(frozen=True)
class Problem:
    """Inputs of both phases. `features_IxE`: pooled vectors of every item text by the encoder as it was loaded.

    `users`: the user texts (`data.user_template`), and `profiles_TxE` the same vectors of the distinct ones; None
    without.
    `lexical` and `words_IxR`: the channel of words, fitted on all item texts as the centre of their vectors is, and
    theirs; None without a `lexical_share` of the solve.
    `dry`: nothing is encoded or fitted; those vectors and hidden states are zeros that take no memory.
    """

    split: Split
    config: Config
    encoder: Encoder
    texts: list[str]
    tokens: TokenStore
    features_IxE: np.ndarray
    popularity: Popularity
    gate_I: np.ndarray
    spread: parallel.Parallel
    dry: bool = False
    users: UserTexts | None = None
    profiles_TxE: np.ndarray | None = None
    lexical: Lexical | None = None
    words_IxR: np.ndarray | None = None

    @property
    def dataset(self) -> Dataset:
        return self.split.dataset

    @property
    def profiles(self) -> np.ndarray | None:
        """The vector of each user's text by the encoder as it was loaded, [U, E]: what solves read."""
        return None if self.users is None or self.profiles_TxE is None else self.profiles_TxE[self.users.text_U]

    @property
    def learnt_users(self) -> UserTexts | None:
        """The user texts that gradient training learns from: none between solves, which read them themselves."""
        return self.users if self.config.schedule.steps == "gradient" else None

    @property
    def positive_rating(self) -> float:
        """Ratings from here on are likes (`data.likes`)."""
        return positive_rating(self.dataset, self.config.evaluation.positive_rating)

    @property
    def learnt_rows(self) -> np.ndarray:
        """Rows of the training part that `train.objective` learns from: all, or the likes where they are ranked."""
        rows, train = self.split.train_rows, self.config.train
        if train.predicts_ratings:
            return rows
        liked = rows[np.asarray(self.dataset.interactions.rating)[rows] >= self.positive_rating]
        if len(liked) == 0:
            raise UserError(
                f"Objective {train.objective} needs likes, and no training rating reaches {self.positive_rating:g}. "
                "Lower evaluation.positive_rating, or choose another split."
            )
        return liked

    def rating_weights(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What errors weigh under naive Bayes propensities: rating values and their weights, float64 [V]; else None.

        Inverse propensities of `balanced_naive_bayes`, at most `train.propensity_clip` times the smallest, of mean 1
        over the learnt rows.
        """
        train, rows = self.config.train, self.learnt_rows
        if train.propensity != "naive_bayes":
            return None
        ratings_N = np.asarray(self.dataset.interactions.rating)[rows]
        item_N = np.asarray(self.dataset.interactions.item)[rows]
        found = balanced_naive_bayes(ratings_N, item_N, self.dataset.num_users, self.dataset.num_items)
        counts_V = np.bincount(np.searchsorted(found.values_V, ratings_N), minlength=len(found.values_V))
        relative_V = found.propensity_V / found.propensity_V.max()
        weight_V = inverse_propensity_weights(relative_V, clip=train.propensity_clip, counts_N=counts_V)
        return found.values_V.astype(np.float64), weight_V

    def _pair_weights(self, rows: np.ndarray) -> Weights | None:
        train = self.config.train
        if (of_ratings := self.rating_weights()) is not None:
            values_V, weight_V = of_ratings
            return lambda item, rating: weight_V[np.searchsorted(values_V, rating)]
        if not train.propensity_power:
            return None
        counts_I = np.bincount(self.dataset.interactions.item[rows], minlength=self.dataset.num_items)
        weight_I = popularity_weights(counts_I, train.propensity_power, clip=train.propensity_clip)
        return lambda item, rating: weight_I[item]

    def on(self, split: Split) -> "Problem":
        """The same problem on other rows of the same dataset; counts and gates follow the new training part."""
        counts = popularity(split.train.item, split.dataset.num_items)
        gate = popularity_gate(counts.counts, self.config.model.gate_count)
        return dataclasses.replace(self, split=split, popularity=counts, gate_I=gate)

    def under(self, config: Config) -> "Problem":
        """The same rows and texts with other settings of model, solves and training.

        What texts are read from and by (`data`, `encoder`) must be the same: `ValueError`.
        """
        if (config.data, config.encoder) != (self.config.data, self.config.encoder):
            raise ValueError("other data or another encoder are another problem")
        lexical, words_IxR = _words(self.tokens, self.encoder, config, dry=self.dry)
        gate_I = popularity_gate(self.popularity.counts, config.model.gate_count)
        return dataclasses.replace(self, config=config, gate_I=gate_I, lexical=lexical, words_IxR=words_IxR)

    def hidden_states(self, tokens: TokenStore | None = None) -> HiddenStates | None:
        """What leaves the frozen layers, from the cache; None without any, with dropout in them, or unasked.

        Of the items' texts, or of other `tokens`.
        """
        tokens = self.tokens if tokens is None else tokens
        train, encoder = self.config.train, self.encoder
        layers = frozen_layers(train.trainable, encoder.config.num_layers)
        if not (layers and train.cache_layers and not train.encoder_dropout):
            return None
        precision = self.config.encoder.precision
        if self.dry:
            return empty_hidden_states(encoder, tokens, layers, precision)
        place = storage.cache_directory() / "hidden"
        return open_hidden_states(encoder, tokens, layers, precision, place)

    def batches(
        self,
        *,
        with_texts: bool,
        hidden: HiddenStates | None = None,
        user_hidden: HiddenStates | None = None,
        events: Interactions | None = None,
        size: int | None = None,
    ) -> BatchSource:
        """The batch source of a phase: with packed texts to encode, or without where vectors are frozen.

        With the `hidden` states that leave the frozen layers, a batch has those of its texts too. `events` stand in the
        place of the training part, in batches of `size` pairs and items; their users are nobody, without texts.
        """
        train = self.config.train
        weights = None
        if events is not None:
            interactions, rows = events, np.arange(len(events))
        else:
            interactions, rows = self.dataset.interactions, self.learnt_rows
            weights = self._pair_weights(rows)
        users = self.learnt_users if events is None else None
        return BatchSource(
            interactions,
            rows,
            num_users=self.dataset.num_users,
            num_items=self.dataset.num_items,
            gate_I=self.gate_I,
            tokens=self.tokens if with_texts else None,
            batch_pairs=size or train.batch_pairs,
            batch_items=size or train.batch_items,
            pairs_per_item=train.pairs_per_item if with_texts else train.head_pairs_per_item,
            row_length=_row_length(self.tokens, train.row_length),
            pad_id=self.encoder.config.pad_token_id,
            devices=self.spread.count,
            share=self.spread.share,
            accumulate=train.accumulate,
            seed=self.config.seed,
            hidden=hidden,
            weights=weights,
            with_log_q=events is None and not train.predicts_ratings,
            user_texts=users,
            user_row_length=0 if users is None else _row_length(users.tokens, train.row_length),
            user_hidden=user_hidden,
        )


def load_problem(
    split: Split, config: Config, *, spread: parallel.Parallel | None = None, dry: bool = False
) -> Problem:
    """Load the encoder, tokenise the texts of items and users and encode each distinct one once (`dry`: none).

    Empty training is refused.
    """
    if len(split.train_rows) == 0:
        raise UserError(f"The training part of the split {split.name!r} is empty.")
    dataset = split.dataset
    encoder = load_encoder(config.encoder.name).with_attention(config.encoder.attention)
    template = config.data.template or str(dataset.info.get("template") or templates.default_template(dataset.items))
    texts = templates.render(template, dataset.items)
    tokens = _tokens(texts, "item", encoder, config)
    lexical, words_IxR = _words(tokens, encoder, config, dry=dry)
    spread = spread or parallel.choose_for_run(config.train.parallel, by_rows=config.train.shard_tables)

    def encoded(tokens: TokenStore) -> np.ndarray:
        if dry:
            return np.broadcast_to(np.float32(0), (len(tokens), encoder.config.hidden_size))
        return catalogue.encode_catalogue(
            encoder, tokens, policy=config.encoder.precision, spread=spread, progress=processes.is_first()
        )

    users = profiles_TxE = None
    if config.data.user_template:
        profiles = templates.render(config.data.user_template, dataset.users)
        users = UserTexts.of(_tokens(profiles, "user", encoder, config))
        profiles_TxE = encoded(users.tokens)
    counts = popularity(split.train.item, dataset.num_items)
    return Problem(
        split=split,
        config=config,
        encoder=encoder,
        texts=texts,
        tokens=tokens,
        features_IxE=encoded(tokens),
        popularity=counts,
        gate_I=popularity_gate(counts.counts, config.model.gate_count),
        spread=spread,
        dry=dry,
        users=users,
        profiles_TxE=profiles_TxE,
        lexical=lexical,
        words_IxR=words_IxR,
    )


def _row_length(tokens: TokenStore, most: int) -> int:
    longest = int(tokens.lengths.max(initial=0))
    return min(most, max(_SHORTEST_ROW, -(-longest // _ROW_STEP) * _ROW_STEP))


def _words(
    tokens: TokenStore, encoder: Encoder, config: Config, *, dry: bool
) -> tuple[Lexical | None, np.ndarray | None]:
    """The channel of words and the texts' vectors in it, where the configuration asks for them."""
    settings = config.bayes if config.schedule.goal == "explicit" else config.whole_data
    vocab_size = encoder.config.vocab_size
    if not settings.lexical_share:
        return None, None
    if dry:
        rank = min(settings.lexical_rank, min(len(tokens), vocab_size) - 1)
        return None, np.broadcast_to(np.float32(0), (len(tokens), rank))
    special = load_tokenizer(encoder.directory, vocab_size).special
    lexical = fit_lexical(tokens, vocab_size, rank=settings.lexical_rank, special=special)
    return lexical, lexical.vectors(tokens)


def _tokens(texts: list[str], whose: str, encoder: Encoder, config: Config) -> TokenStore:
    """Texts as the encoder reads them; how many are cut is told."""
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    length = min(config.data.max_length, encoder.max_length)
    tokens = build_store(texts, tokenizer, length, cache=storage.cache_directory() / "tokens")
    if tokens.truncated:
        print(
            f"{tokens.truncated:,} of {len(texts):,} {whose} texts have more than {length} tokens and are cut there "
            "(data.max_length).",
            file=sys.stderr,
        )
    return tokens

"""Which tokens of a text are hidden from the model, and by what: pure NumPy, a function of its random generator alone.

Out of scope: batches of masked texts (`train`), what predicts the hidden tokens.
"""

import dataclasses

import numpy as np
import tokenizers

from ltrec_jax.errors import UserError
from ltrec_jax.text.tokenizer import Tokenizer

SHARE = 0.15
_MASKED, _RANDOM = 0.8, 0.1
_MASK_NAMES = ("[MASK]", "<mask>")
_SPECIAL_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<pad>", "<unk>", *_MASK_NAMES)
# What a token that begins a word begins with: byte-level BPE writes the space as one sign, SentencePiece as another.
_SPACES = ("\u0120", "\u2581")


@dataclasses.dataclass(frozen=True)
class Maskable:
    """What masking must know of a vocabulary.

    `special_V`: never hidden and never drawn as a random token, as are rows that have no token. `continues_V`: goes on
    with the word of the token before it ("##ing"; in RoBERTa's and SentencePiece's convention every token without a
    leading space). Both bool[V].
    """

    mask_id: int
    special_V: np.ndarray
    continues_V: np.ndarray

    @property
    def ordinary(self) -> np.ndarray:
        """Ids of the tokens that are not special, int64."""
        return np.flatnonzero(~self.special_V)


def maskable(tokenizer: Tokenizer) -> Maskable:
    """Read off a tokenizer, once per vocabulary. One without a mask token is a `UserError`."""
    engine = tokenizer.engine
    mask_id = next((found for name in _MASK_NAMES if (found := tokenizer.token_id(name)) is not None), None)
    if mask_id is None:
        raise UserError(
            f"The tokenizer has no {' or '.join(_MASK_NAMES)}, without which masked-language-model training is not "
            "possible. Choose an encoder that was trained with one, or train from scratch."
        )
    added = engine.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    special |= {found for name in _SPECIAL_NAMES if (found := tokenizer.token_id(name)) is not None}
    names, special_V = [""] * tokenizer.vocab_size, np.ones(tokenizer.vocab_size, bool)
    for name, number in engine.get_vocab(with_added_tokens=True).items():
        names[number], special_V[number] = name, False
    special_V[sorted(special)] = True
    return Maskable(mask_id, special_V, _continues(engine, names) & ~special_V)


def corrupt(
    values_T: np.ndarray,
    offsets: np.ndarray,
    vocabulary: Maskable,
    generator: np.random.Generator,
    *,
    share: float = SHARE,
    whole_words: bool = True,
    every_text: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(what the model reads int32[T], which tokens it must guess bool[T]) for texts `values[offsets[i]:offsets[i+1]]`.

    Every word (or token, without `whole_words`) is chosen with probability `share`, independently. Of the chosen tokens
    80% become the mask, 10% a random ordinary token and 10% stay (Devlin et al., 2019). Special tokens are left alone.
    With `every_text` a text of which nothing was chosen has one word chosen, each with the same probability: the rest
    of the draw is as without. Then only texts without ordinary tokens have nothing to guess.
    """
    values_T, offsets = np.asarray(values_T, np.int32), np.asarray(offsets)
    unit_T = _units(values_T, offsets, vocabulary, whole_words=whole_words)
    drawn = generator.random(int(unit_T[-1]) + 1 if len(unit_T) else 0) < share
    chosen_T = drawn[unit_T] & ~vocabulary.special_V[values_T]
    fate_T = generator.random(len(values_T))
    ordinary = vocabulary.ordinary
    random_T = ordinary[generator.integers(len(ordinary), size=len(values_T))]
    replaced_T = np.where(fate_T < _MASKED, vocabulary.mask_id, random_T)
    if every_text:
        chosen_T = chosen_T | _one_of_each_bare_text(
            chosen_T, unit_T, offsets, ~vocabulary.special_V[values_T], generator
        )
    changed_T = chosen_T & (fate_T < _MASKED + _RANDOM)
    return np.where(changed_T, replaced_T, values_T).astype(np.int32), chosen_T


def _one_of_each_bare_text(
    chosen_T: np.ndarray,
    unit_T: np.ndarray,
    offsets: np.ndarray,
    ordinary_T: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """The tokens of one unit, drawn uniformly, of every text that has ordinary tokens and none chosen, bool[T]."""
    text_T = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    bare = np.bincount(text_T[chosen_T], minlength=len(offsets) - 1) == 0
    # A unit is special as a whole or not at all.
    candidates = np.flatnonzero(ordinary_T & bare[text_T])
    units, first = np.unique(unit_T[candidates], return_index=True)
    texts = text_T[candidates[first]]
    shuffled = np.lexsort((generator.random(len(units)), texts))
    drawn = shuffled[np.unique(texts[shuffled], return_index=True)[1]]
    return np.isin(unit_T, units[drawn])


def _units(values_T: np.ndarray, offsets: np.ndarray, vocabulary: Maskable, *, whole_words: bool) -> np.ndarray:
    """The number of the word (or token) that each token belongs to, ascending, int64[T]."""
    starts_T = np.ones(len(values_T), bool)
    if whole_words and len(values_T):
        starts_T = ~vocabulary.continues_V[values_T]
        # What follows a special token begins a word, with or without a leading space.
        starts_T[1:] |= vocabulary.special_V[values_T[:-1]]
        first = offsets[:-1]
        starts_T[first[first < len(values_T)]] = True
    return np.cumsum(starts_T) - 1


def _continues(engine: tokenizers.Tokenizer, names: list[str]) -> np.ndarray:
    prefix = getattr(engine.model, "continuing_subword_prefix", None)
    if prefix:
        return np.array([name.startswith(prefix) for name in names], bool)
    if any(name.startswith(_SPACES) for name in names):
        return np.array([not name.startswith(_SPACES) for name in names], bool)
    return np.zeros(len(names), bool)

"""Titles, genres and descriptions in plain English for made-up items: the words tell the topic, nothing else.

Out of scope: which item has which topic and what users think of it (`synthetic`).
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TEMPLATE = "{title}. {genre}. {description}"
"""How an item of a made-up catalogue is read as one text."""


@dataclasses.dataclass(frozen=True)
class Topic:
    """A genre and the words that only its items use."""

    genre: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


def _topic(genre: str, adjectives: str, nouns: str) -> Topic:
    return Topic(genre, tuple(adjectives.split()), tuple(nouns.split()))


TOPICS = (
    _topic("Space", "lunar cosmic weightless orbital starlit", "rocket planet comet astronaut galaxy telescope"),
    _topic("Farming", "rural muddy fertile sunburnt organic", "tractor barn orchard harvest shepherd meadow"),
    _topic("Crime", "guilty wanted corrupt masked forensic", "detective heist alibi witness smuggler verdict"),
    _topic("Cooking", "spicy roasted buttery crunchy sour", "kitchen recipe pastry chef banquet saucepan"),
    _topic("Sailing", "salty nautical windward stormy tidal", "captain harbour anchor lighthouse voyage reef"),
    _topic("Music", "melodic acoustic loud rhythmic harmonic", "violin orchestra drummer concert chorus melody"),
    _topic("Mountains", "alpine icy steep rocky breathless", "summit glacier climber avalanche ridge rope"),
    _topic(
        "Medicine", "surgical feverish sterile contagious healing", "doctor hospital vaccine patient nurse ambulance"
    ),
    _topic("Sport", "athletic sweaty undefeated amateur agile", "goalkeeper stadium marathon referee trophy sprinter"),
    _topic("Fantasy", "enchanted magical cursed ancient winged", "dragon wizard castle prophecy goblin spell"),
    _topic("War", "armoured wounded besieged heroic fallen", "soldier battlefield trench general ceasefire convoy"),
    _topic("Romance", "tender jealous passionate secret heartbroken", "wedding sweetheart kiss bouquet letter lover"),
    _topic("Computing", "digital encrypted wireless virtual binary", "hacker server keyboard algorithm robot network"),
    _topic("Gardening", "leafy blooming thorny shady fragrant", "tulip greenhouse compost hedge gardener seedling"),
    _topic(
        "Railways", "punctual rusty express northbound steam", "locomotive station conductor tunnel carriage signal"
    ),
    _topic(
        "Painting", "colourful abstract framed luminous impressionist", "canvas gallery portrait easel brush sculptor"
    ),
)
# Between bars: one of the words drawn for the item. n0 to n3 are four different nouns of its topic.
_TITLES = ("The |a0| |n0|", "The |n0| and the |n1|", "A |a0| |n1| in the |n0|", "|a0| |n0|")
_DESCRIPTIONS = (
    "A tale of a |a1| |n0|, a |n2| and a |a0| |n3|.",
    "Everything about the |n2| and the |n0|, told by a |a1| |n3|.",
    "What happens when a |n2| meets a |a1| |n3| beside the |n1|.",
)
_CHUNK = 1 << 18


def texts(topic_I: np.ndarray, generator: np.random.Generator) -> pa.Table:
    """Columns title, genre and description (strings) of items whose topics are `topic_I`, int[I] in 0..15."""
    return pa.concat_tables(
        [_chunk(topic_I[start : start + _CHUNK], generator) for start in range(0, max(1, len(topic_I)), _CHUNK)]
    )


def _chunk(topic_I: np.ndarray, generator: np.random.Generator) -> pa.Table:
    words = _words("adjectives", 2, topic_I, generator) | _words("nouns", 4, topic_I, generator)
    genre = pa.array([topic.genre for topic in TOPICS]).take(pa.array(topic_I))
    title = pc.utf8_capitalize(_phrases(_TITLES, words, generator))
    return pa.table({"title": title, "genre": genre, "description": _phrases(_DESCRIPTIONS, words, generator)})


def _words(kind: str, count: int, topic_I: np.ndarray, generator: np.random.Generator) -> dict[str, pa.Array]:
    """`count` different words of the item's topic: "n0", "n1", ... for nouns, "a0", ... for adjectives."""
    lists = [getattr(topic, kind) for topic in TOPICS]
    size = len(lists[0])
    pool = pa.array([word for words in lists for word in words])
    first_I = generator.integers(size, size=len(topic_I))
    direction_I = generator.choice([1, size - 1], size=len(topic_I))
    return {
        f"{kind[0]}{n}": pool.take(pa.array(topic_I * size + (first_I + n * direction_I) % size)) for n in range(count)
    }


def _phrases(forms: tuple[str, ...], words: dict[str, pa.Array], generator: np.random.Generator) -> pa.Array:
    """One of the forms per row, filled in, with "an" before a vowel."""
    written = []
    for form in forms:
        parts = [words.get(part, pa.scalar(part)) for part in form.split("|")]
        written.append(pc.binary_join_element_wise(*parts, ""))
    chosen = pc.choose(pa.array(generator.integers(len(forms), size=len(words["n0"]))), *written)
    return pc.replace_substring_regex(chosen, r"\b([Aa]) ([aeiou])", r"\1n \2")

"""Answers from a bundle and from what happened since: pure request -> response, no web code.

Reads never wait for writes. A write is in the journal before it is acknowledged and visible in the next request; at the
start the journal is replayed. Out of scope: transport (`http`), training.
"""

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltrec_jax import topk
from ltrec_jax.bundle import Bundle
from ltrec_jax.errors import UserError
from ltrec_jax.serve import journal as events
from ltrec_jax.serve import rerank
from ltrec_jax.serve.clicks import Clicks
from ltrec_jax.serve.index import Index, exact_index
from ltrec_jax.serve.journal import Journal
from ltrec_jax.serve.live_items import NEW, LiveItems
from ltrec_jax.serve.live_users import LiveUsers, Profile
from ltrec_jax.serve.placing import Placed, Placer
from ltrec_jax.serve.spaces import unit

__all__ = ["NEW", "Query", "Recommendation", "Service", "Similar", "recommend"]

MOST_COLD_GAIN = 10.0
_POOL = 200
_POOL_PER_ITEM = 10
_TEXT_COUNTS_AS = 20
"""A user described by a text counts as one who gave the best rating to so many items that stand where the text does."""
_ENCODED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Query:
    """Whom to recommend for, and what may be shown.

    Exactly one of: `user` (an id), `liked` / `rated` (items of somebody new), `text` (a description). `filters` name
    attributes and the values of which one must match; `allow` and `deny` are item ids. `diversity` is the dial of
    `rerank.diverse`.

    `tail` in [0, 1] and `cold_gain` in [0, 10] are the dials of `solve.cold_start.dial_factors` where the model was
    solved for lists: the score of an item with n training events is multiplied by n^-tail, that of one without any by
    `cold_gain`, beside what `whole_data.cold_gain` did in the solve. The list is the one that the report's dial curve
    has at the place `tail`. Of other models `tail` is the dial of `rerank.tail_dial`, and `cold_gain` must be 1.
    """

    user: str | None = None
    liked: Sequence[str] = ()
    rated: Mapping[str, float] = dataclasses.field(default_factory=dict)
    text: str | None = None
    k: int = 10
    filters: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    allow: Sequence[str] | None = None
    deny: Sequence[str] = ()
    show_seen: bool = False
    tail: float = 0.0
    cold_gain: float = 1.0
    diversity: float = 0.0
    reasons: int = 2


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item: rank from 1, text, score, popularity group, and why.

    score = bias + from_text + from_behaviour: mu + b_u + b_i, <p, anchor_i> and <p, q_i - anchor_i>. `resembles` are
    texts of liked items like it.
    """

    rank: int
    item_id: str
    text: str
    score: float
    group: str
    resembles: tuple[str, ...]
    bias: float = 0.0
    from_text: float = 0.0
    from_behaviour: float = 0.0


@dataclasses.dataclass(frozen=True)
class Similar:
    """One item found by likeness: rank from 1, cosine in [-1, 1]."""

    rank: int
    item_id: str
    text: str
    cosine: float
    group: str


class Service:
    """A bundle that answers and learns. `index`: how the bundle's items are searched (default: exactly).

    `journal` is the durable log, which the service closes with itself; None forgets everything at the end.
    """

    def __init__(self, bundle: Bundle, *, journal: Journal | None = None, index: Index | None = None) -> None:
        self._journal = journal or Journal(None)
        self._writing = threading.Lock()
        self.clicks = Clicks()
        self._world = _World(bundle, index or exact_index(bundle.vectors))
        try:
            self._world.replay(self._journal)
            self.clicks = Clicks.of(self._journal.read(events.IMPRESSION, events.FEEDBACK))
        except BaseException:
            self.close()
            raise

    @property
    def bundle(self) -> Bundle:
        """What is served now."""
        return self._world.bundle

    @property
    def items(self) -> LiveItems:
        """The catalogue now."""
        return self._world.items

    @property
    def users(self) -> LiveUsers:
        """The users now."""
        return self._world.users

    @property
    def has_cold_gain(self) -> bool:
        """Whether queries may turn `cold_gain`."""
        return self._world.only_products

    @property
    def placer(self) -> Placer:
        """Where texts become vectors; give its results to the methods below so that they need not wait."""
        return self._world.placer

    def warm_up(self) -> None:
        """Compile what requests need."""
        world = self._world
        world.placer.warm_up()
        for user in world.users.some(1) if world.items.ids else ():
            for k in (10, _POOL):
                self.recommend([Query(user=user, k=k)])
            self.recommend([Query(user=user, deny=[world.items.ids[0]])])
            self.similar(world.items.ids[0], 10)
            self.search(world.items.texts[0], 10)

    def recommend(self, queries: Sequence[Query], placed: Placed | None = None) -> list[list[Recommendation]]:
        """The k items with the highest scores for each query among those it allows, best first, ties by item number.

        `placed` holds the texts of the queries that have one, in order. Fewer than k come back when fewer are left.
        """
        world = self._world
        _check(queries, world.only_products)
        texts = [query.text for query in queries if query.text is not None]
        if texts and placed is None:
            placed = world.placer.place(texts)
        profiles, row = [], 0
        for query in queries:
            profiles.append(world.profile(query, placed, row))
            row += query.text is not None
        return [world.answer(query, profile) for query, profile in zip(queries, profiles, strict=True)]

    def shown(self, user: str, answer: Sequence[Recommendation]) -> None:
        """Log an answer that a user gets to see (buffered: it may be lost in a crash)."""
        event = {"user": user, "items": [one.item_id for one in answer], "groups": [one.group for one in answer]}
        self._journal.note(events.IMPRESSION, event)
        self.clicks.see(events.IMPRESSION, event)

    def similar(self, item_id: str, k: int = 10, *, by: str = "model") -> list[Similar]:
        """The k items most like one: cosine of what the model knows of both ("model"), or of their texts ("text")."""
        world = self._world
        space = {"model": world.items.alike, "text": world.items.meaning}.get(by)
        if space is None:
            raise UserError(f"by must be 'model' or 'text', not {by!r}.")
        number = np.array([world.items.number(item_id)])
        vector, _ = space.rows(number)
        return world.alike(space.search(unit(vector), np.zeros(1, np.float32), k, [number], world.items.allowed({})))

    def search(self, text: str, k: int = 10, placed: Placed | None = None) -> list[Similar]:
        """The k items whose texts are most like a query, by cosine."""
        world = self._world
        placed = placed or world.placer.place([text])
        vector, nothing = unit(placed.text_KxE[:1]), [np.zeros(0, np.int64)]
        found = world.items.meaning.search(vector, np.zeros(1, np.float32), k, nothing, world.items.allowed({}))
        return world.alike(found)

    def put_item(
        self, item_id: str, text: str, attributes: Mapping[str, Any] | None = None, placed: Placed | None = None
    ) -> bool:
        """Add or change an item; True if it is new. It can be found in the next request."""
        attributes = dict(attributes or {})
        with self._writing:
            world = self._world
            placed = placed or world.placer.place([text])
            world.items.check_attributes(attributes)
            self._journal.append(events.ITEM_PUT, [{"item": item_id, "text": text, "attributes": attributes}])
            return world.items.put(item_id, text, attributes, placed)

    def delete_item(self, item_id: str) -> None:
        """Take an item out of every answer from the next request on; an unknown id is a `UserError`."""
        with self._writing:
            self._world.items.number(item_id)
            self._journal.append(events.ITEM_DELETE, [{"item": item_id}])
            self._world.items.remove(item_id)

    def feedback(self, user: str, item_id: str, rating: float | None = None, *, click: bool = False) -> None:
        """A user rated an item (None: without a rating, only `click` is counted). The user's vector moves at once."""
        event = {"user": user, "item": item_id, "rating": rating, "click": click}
        with self._writing:
            number = self._world.items.number(item_id)
            self._world.check_rating(rating)
            self._journal.append(events.FEEDBACK, [event])
            if rating is not None:
                self._world.users.feedback(user, number, rating)
            self.clicks.see(events.FEEDBACK, event)

    def swap(self, bundle: Bundle, index: Index | None = None) -> None:
        """Serve another bundle from the next request on, with the journal replayed onto it.

        Feedback that the new bundle was trained on is not counted twice. Requests under way finish on the old one.
        """
        world = _World(bundle, index or exact_index(bundle.vectors))
        world.placer.warm_up()
        with self._writing:
            world.replay(self._journal)
            old, self._world = self._world, world
        old.close()

    def close(self) -> None:
        """Write what waits and stop."""
        self._world.close()
        self._journal.close()


class _World:
    """One bundle with everything that moved since."""

    def __init__(self, bundle: Bundle, index: Index) -> None:
        self.bundle = bundle
        self.items = LiveItems(bundle, index)
        self.users = LiveUsers(bundle, self.items)
        self.only_products = bundle.vectors.only_products
        self._texts_come = False

    @functools.cached_property
    def placer(self) -> Placer:
        """Made when the first text comes: one answer for a known user needs no encoder."""
        self._texts_come = True
        return Placer(self.bundle)

    def close(self) -> None:
        """Stop the encoder's thread."""
        if self._texts_come:
            self.placer.close()

    def replay(self, journal: Journal) -> None:
        """Apply the log in its order; texts are encoded many at a time beforehand."""
        kinds = (events.ITEM_PUT, events.ITEM_DELETE, events.FEEDBACK)
        log = list(journal.read(*kinds))
        texts = [event["text"] for kind, _, event in log if kind == events.ITEM_PUT]
        placed = [
            (one, row)
            for start in range(0, len(texts), _ENCODED_AT_ONCE)
            for chunk in [texts[start : start + _ENCODED_AT_ONCE]]
            for one in [self.placer.place(chunk)]
            for row in range(len(chunk))
        ]
        waiting = iter(placed)
        known = set(self.items.attributes)
        for kind, _, event in log:
            if kind == events.ITEM_PUT:
                # A column that only an older bundle had is left out rather than refused.
                attributes = {name: value for name, value in event["attributes"].items() if name in known}
                self.items.put(event["item"], event["text"], attributes, *next(waiting))
            elif event["item"] not in self.items:
                continue
            elif kind == events.ITEM_DELETE:
                self.items.remove(event["item"])
            elif event["rating"] is not None:
                number = self.items.number(event["item"])
                if not self.users.was_trained_on(event["user"], number, event["rating"]):
                    self.users.feedback(event["user"], number, event["rating"])

    def check_rating(self, rating: float | None) -> None:
        lowest, highest = self.bundle.about["scale"]
        if rating is not None and not lowest <= rating <= highest:
            raise UserError(f"A rating lies in {lowest:g}..{highest:g}, not {rating:g}.")

    def profile(self, query: Query, placed: Placed | None, row: int) -> Profile:
        if query.user is not None:
            if query.user not in self.users:
                self.bundle.user_index(query.user)  # says which users there are
            return self.users.profile(query.user)
        if query.text is not None:
            assert placed is not None
            return self.users.from_vector(placed.anchor_KxD[row], float(placed.bias_K[row]), _TEXT_COUNTS_AS)
        best = float(self.bundle.about["scale"][1])
        rated = {**dict.fromkeys(query.liked, best), **query.rated}
        for rating in query.rated.values():
            self.check_rating(rating)
        return self.users.from_ratings([self.items.number(one) for one in rated], list(rated.values()))

    def answer(self, query: Query, profile: Profile) -> list[Recommendation]:
        items = self.items
        reranked = query.diversity > 0.0 or (query.tail > 0.0 and not self.only_products)
        asked = max(_POOL, _POOL_PER_ITEM * query.k) if reranked else query.k
        excluded = np.zeros(0, np.int64) if query.show_seen else profile.seen
        allowed = items.allowed(query.filters, query.allow, query.deny)
        factor = None
        if self.only_products and (query.tail, query.cold_gain) != (0.0, 1.0):
            factor = items.dial_factors(len(allowed), query.tail, query.cold_gain)
        p, b = np.asarray(profile.vector, np.float32)[None, :], np.array([profile.bias], np.float32)
        (numbers,), (scores,) = items.score.search(p, b, min(asked, len(items.ids)), [excluded], allowed, factor)
        listed = numbers != topk.NO_ITEM
        numbers, scores = numbers[listed], scores[listed]
        if reranked:
            values = scores if self.only_products else rerank.tail_dial(scores, items.counts(numbers), query.tail)
            texts = unit(items.meaning.rows(numbers)[0]) if query.diversity else np.zeros((len(numbers), 1))
            chosen = rerank.diverse(values, texts, query.k, query.diversity)
            numbers, scores = numbers[chosen], scores[chosen]
        if factor is not None:  # what is told is the score itself, which has its reasons
            scores = items.score.rows(numbers)[0] @ p[0] + b[0]
        return self._explained(numbers, scores, profile, query.reasons)

    def alike(self, found: tuple[np.ndarray, np.ndarray]) -> list[Similar]:
        (numbers,), (cosines,) = found
        real = [(int(n), float(c)) for n, c in zip(numbers, cosines, strict=True) if n != topk.NO_ITEM]
        items = self.items
        return [
            Similar(rank, items.ids[number], items.texts[number], cosine, items.group(number))
            for rank, (number, cosine) in enumerate(real, 1)
        ]

    def _explained(
        self, numbers: np.ndarray, scores: np.ndarray, profile: Profile, reasons: int
    ) -> list[Recommendation]:
        items = self.items
        q_KxD, b_K = items.score.rows(numbers)
        from_text = items.anchors(numbers)[0] @ profile.vector
        product = q_KxD @ profile.vector
        bias = self.bundle.vectors.mu + profile.bias + b_K
        nearest = self._nearest(q_KxD, profile.liked, reasons)
        return [
            Recommendation(
                rank=place + 1,
                item_id=items.ids[number],
                text=items.texts[number],
                score=float(scores[place]),
                group=items.group(number),
                resembles=tuple(items.texts[like] for like in nearest[place]),
                bias=float(bias[place]),
                from_text=float(from_text[place]),
                from_behaviour=float(product[place] - from_text[place]),
            )
            for place, number in enumerate(numbers.tolist())
        ]

    def _nearest(self, q_KxD: np.ndarray, liked: np.ndarray, count: int) -> list[list[int]]:
        """For each item the `count` liked ones with the highest cosine, nearest first."""
        if len(liked) == 0 or len(q_KxD) == 0 or count == 0:
            return [[] for _ in q_KxD]
        cosines = unit(q_KxD) @ unit(self.items.score.rows(liked)[0]).T
        return [[int(liked[j]) for j in np.argsort(-row, kind="stable")[:count]] for row in cosines]


def recommend(bundle: Bundle, user_id: str, k: int = 10, *, reasons: int = 2) -> list[Recommendation]:
    """The `k` items with the highest scores among those the user has not seen, best first, ties by item id.

    Each names up to `reasons` items the user liked (rating at or above the bundle's positive rating) whose vectors
    have the highest cosine with its own. Fewer than `k` come back when fewer are unseen. An unknown user or a `k`
    below 1 is a `UserError`.
    """
    query = Query(user=str(user_id), k=k, reasons=reasons)
    _check([query], only_products=False)
    bundle.user_index(query.user or "")
    world = _World(bundle, exact_index(bundle.vectors))
    return world.answer(query, world.profile(query, None, 0))


def _check(queries: Sequence[Query], only_products: bool) -> None:
    for query in queries:
        if query.k < 1:
            raise UserError(f"k must be at least 1, not {query.k}.")
        for name in ("tail", "diversity"):
            if not 0.0 <= getattr(query, name) <= 1.0:
                raise UserError(f"{name} must lie in 0..1, not {getattr(query, name):g}.")
        if not 0.0 <= query.cold_gain <= MOST_COLD_GAIN:
            raise UserError(f"cold_gain must lie in 0..{MOST_COLD_GAIN:g}, not {query.cold_gain:g}.")
        if query.cold_gain != 1.0 and not only_products:
            raise UserError(
                "cold_gain multiplies scores that only rank, as of a model solved for lists (schedule.goal = "
                "whole_data). This model's are on another scale: leave cold_gain at 1."
            )
        named = [query.user is not None, bool(query.liked or query.rated), query.text is not None]
        if sum(named) != 1:
            raise UserError("Say for whom: exactly one of user, liked/rated, text.")

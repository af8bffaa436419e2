"""From answers to sums per user: every part of the test is cut out by masks, every metric is a ratio of such sums.

Out of scope: asking models (`exam`), intervals (`significance`), how figures are arranged (`report`).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import tqdm

from ltrec_jax.data.popularity import GROUPS
from ltrec_jax.evaluation import accuracy, clicks, counterfactual, diversity, longtail, profiles, rating
from ltrec_jax.evaluation.exam import ALL, Answers, Exam
from ltrec_jax.evaluation.ranking import Lists
from ltrec_jax.evaluation.results import CATALOGUE, OVERALL
from ltrec_jax.evaluation.significance import UserSums
from ltrec_jax.evaluation.slices import POPULARITY, USERS, Slice

TAIL = GROUPS[2]
"""The item group that APLT counts."""
_PAIRS = (*rating.METRICS, "auc", "logloss")
_PROPENSITIES = ("rmse_ips", "rmse_snips", "rmse_dr")
_LISTS = ("arp", "aplt", "novelty", "efd", "epc", "serendipity", "diversity", "popularity_lift", "miscalibration")
_LISTS_OF_USERS = ("arp", "popularity_lift", "miscalibration")


def names(kind: str, cutoffs: Sequence[int]) -> list[str]:
    """The metrics that a kind of slice has, in the order of the report."""
    if kind == CATALOGUE:
        return ["coverage", "gini", *_LISTS]
    if kind in (USERS, POPULARITY):
        return ["rmse", "auc", f"ndcg@{cutoffs[0]}", *(_LISTS_OF_USERS if kind == USERS else ())]
    found = [*_PAIRS, *(f"{name}@{k}" for name in accuracy.METRICS for k in cutoffs)]
    if kind == OVERALL:
        found += [*_PROPENSITIES, f"recall_snips@{cutoffs[0]}", f"dcg_snips@{cutoffs[0]}"]
    return found


def sums(
    asked: Exam,
    answers: Mapping[str, Answers],
    parts: Sequence[Slice],
    tail_I: np.ndarray | None,
    imputed_P: np.ndarray | None,
    vectors_IxE: np.ndarray | None,
) -> Iterator[tuple[Hashable, UserSums]]:
    """Yield ((model, slice kind, slice name, metric), sums per test user), one at a time.

    A metric that a model or the data does not have is left out. tail_I bool [I] is what APLT counts, imputed_P are the
    ratings that the doubly robust estimate imputes to the test events, vectors_IxE what diversity is measured in.
    """
    for name, given in answers.items():
        of_lists = _list_sums(asked, given, tail_I, vectors_IxE)
        for metric, each in of_lists.items():
            yield (name, CATALOGUE, CATALOGUE, metric), each
        for part in tqdm.tqdm(parts, f"figures of {name}", unit="group", delay=1.0, leave=False):
            wanted = names(part.kind, asked.cutoffs)
            found = _pair_sums(asked, given, part, wanted) | ranking_sums(asked, given.lists, part, wanted)
            if part.kind == OVERALL:
                found |= _counterfactual_sums(asked, given, imputed_P)
            if part.kind == USERS:
                found |= {m: _masked(of_lists[m], part.users_U) for m in wanted if m in of_lists}
            for metric in wanted:
                if metric in found:
                    yield (name, part.kind, part.name, metric), found[metric]


def whole(asked: Exam, given: Answers) -> dict[str, float | None]:
    """The figures of all lists together, at the first cutoff: no user has a part of them, so they have no interval."""
    items = given.lists[ALL].items[:, : asked.cutoffs[0]]
    return {"coverage": longtail.coverage(items, asked.num_items), "gini": longtail.gini(items, asked.num_items)}


def _list_sums(
    asked: Exam, given: Answers, tail_I: np.ndarray | None, vectors_IxE: np.ndarray | None
) -> dict[str, UserSums]:
    """The figures about the lists at the first cutoff, per test user; users without a target have no list."""
    k, counts_I = asked.cutoffs[0], asked.train_count_I
    items, hits = given.lists[ALL].items[:, :k], given.lists[ALL].hits[:, :k]
    known = asked.profiles.take(asked.row_V)
    found = {
        "arp": longtail.arp(items, counts_I),
        "novelty": longtail.novelty(items, counts_I),
        "efd": longtail.efd(items, hits, counts_I),
        "epc": longtail.epc(items, hits, counts_I, int((asked.seen.counts > 0).sum())),
        "serendipity": diversity.serendipity(items, hits, asked.obvious_Vxk),
        "popularity_lift": profiles.popularity_lift(items, known, counts_I),
    }
    if tail_I is not None:
        found["aplt"] = longtail.aplt(items, tail_I)
    if vectors_IxE is not None:
        found["diversity"] = diversity.intra_list_diversity(items, vectors_IxE)
    if asked.group_I is not None:
        found["miscalibration"] = profiles.miscalibration(items, known, asked.group_I)
    return {metric: _placed(each, asked.row_V, len(asked.users)) for metric, each in found.items()}


def _pair_sums(asked: Exam, given: Answers, part: Slice, wanted: Sequence[str]) -> dict[str, UserSums]:
    if given.scored is None or part.candidates != ALL:
        return {}
    inside_P = part.items_I[asked.test.item] & part.users_U[asked.row_P]
    scored, truth, rows = given.scored[inside_P], asked.test.rating[inside_P], asked.row_P[inside_P]
    positive, num_rows = asked.positive_P[inside_P], len(asked.users)
    found = {}
    if given.rates:
        found = {m: metric(scored, truth, rows, num_rows) for m, metric in rating.METRICS.items() if m in wanted}
    if "auc" in wanted:
        found["auc"] = clicks.auc(scored, positive, rows, num_rows)
    if "logloss" in wanted and given.rates and asked.is_clicks:
        found["logloss"] = clicks.log_loss(scored, truth > 0, rows, num_rows)
    return found


def ranking_sums(
    asked: Exam, lists_by_candidates: Mapping[str, Lists], part: Slice, wanted: Sequence[str]
) -> dict[str, UserSums]:
    """The accuracy of one part, for the metrics in `wanted` that are of this kind, per test user."""
    row_V, lists = asked.row_V, lists_by_candidates[part.candidates]
    relevant_V = np.where(part.users_U[row_V], asked.wanted.relevant(part.items_I), 0)
    # Item -1 reads the last mask entry, but is never a hit.
    hits_VxK = lists.hits & part.items_I[lists.items]
    counted_V = relevant_V > 0
    # Every metric of a list without a hit is 0, and in a small group most lists are.
    some = hits_VxK.any(1) & counted_V
    counted_U = _at(counted_V.astype(np.float64), row_V, len(asked.users))
    found = {}
    for name, metric in accuracy.METRICS.items():
        for k in asked.cutoffs:
            if f"{name}@{k}" in wanted:
                value = metric(hits_VxK[some], relevant_V[some], k)
                found[f"{name}@{k}"] = UserSums(_at(value, row_V[some], len(asked.users)), counted_U)
    return found


def _counterfactual_sums(asked: Exam, given: Answers, imputed_P: np.ndarray | None) -> dict[str, UserSums]:
    k, num_rows = asked.cutoffs[0], len(asked.users)
    weighted = counterfactual.ranking(given.lists[ALL], asked.wanted, asked.propensity_I, k)
    found = {f"{name}_snips@{k}": _placed(each, asked.row_V, num_rows) for name, each in weighted.items()}
    if given.scored is not None and given.rates:
        squared_P = rating.errors(given.scored, asked.test.rating) ** 2
        p_P, items = asked.propensity_I[asked.test.item], int((asked.propensity_I > 0).sum())
        if not p_P.any():
            return found
        found["rmse_ips"] = counterfactual.ips(squared_P, p_P, asked.row_P, num_rows, items, root=True)
        found["rmse_snips"] = counterfactual.snips(squared_P, p_P, asked.row_P, num_rows, root=True)
        if imputed_P is not None and given.gap_U is not None:
            gap_P = rating.errors(given.scored, imputed_P) ** 2
            found["rmse_dr"] = counterfactual.doubly_robust(
                squared_P, gap_P, given.gap_U, p_P, asked.row_P, items, root=True
            )
    return found


def _placed(each: UserSums, row_V: np.ndarray, num_rows: int) -> UserSums:
    """Sums of V users as sums of all test users; who is not among the V has none."""
    return UserSums(_at(each.total_U, row_V, num_rows), _at(each.count_U, row_V, num_rows), each.root, each.by_users)


def _masked(each: UserSums, users_U: np.ndarray) -> UserSums:
    return UserSums(each.total_U * users_U, each.count_U * users_U, each.root, each.by_users)


def _at(value_V: np.ndarray, row_V: np.ndarray, num_rows: int) -> np.ndarray:
    placed = np.zeros(num_rows)
    placed[row_V] = value_V
    return placed

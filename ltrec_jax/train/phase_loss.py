"""Which loss a phase over pairs minimises: the objective that the settings name, and a contrast of texts beside it.

Out of scope: the losses themselves (`pair_loss`, `ranking_loss`, `whole_data_loss`, `contrast_loss`).
"""

from ltrec_jax.model.head import Head
from ltrec_jax.objectives.squared_error import squared_error
from ltrec_jax.train.batches import BatchSource
from ltrec_jax.train.contrast_loss import with_contrast
from ltrec_jax.train.pair_loss import PooledTexts, make_pair_loss
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.ranking_loss import make_ranking_loss
from ltrec_jax.train.step import Loss
from ltrec_jax.train.whole_data_loss import make_whole_data_loss


def make_phase_loss(problem: Problem, pooled: PooledTexts, pooled_users: PooledTexts, source: BatchSource) -> Loss:
    """The objective `train.objective` over the batches of `source`.

    `pooled` and `pooled_users` give the texts of items and, where those have some, of users.
    """
    model, train = problem.config.model, problem.config.train
    head = Head(model.embedding_dim)
    if train.predicts_ratings:
        return make_pair_loss(
            pooled_texts=pooled,
            head=head,
            objective=squared_error,
            model=model,
            pooled_users=pooled_users,
            axis=problem.spread.axis,
        )
    if train.objective == "whole_data":
        return make_whole_data_loss(
            pooled_texts=pooled,
            head=head,
            model=model,
            unobserved_weight=problem.config.whole_data.unobserved_weight,
            num_items=problem.dataset.num_items,
            others=source.others,
            axis=problem.spread.axis,
        )
    return make_ranking_loss(
        pooled_texts=pooled,
        head=head,
        objective=train.objective,
        model=model,
        num_items=problem.dataset.num_items,
        axis=problem.spread.axis,
        pooled_users=pooled_users,
    )


def make_contrasted_loss(problem: Problem, pooled: PooledTexts, source: BatchSource) -> Loss:
    """The same for an encoder that learns, with `train.contrast_weight` times the contrast of the items' texts."""
    train = problem.config.train
    if not train.contrast_weight:
        return make_phase_loss(problem, pooled, pooled, source)
    return with_contrast(
        lambda given: make_phase_loss(problem, given, pooled, source),
        pooled,
        weight=train.contrast_weight,
        temperature=train.contrast_temperature,
        num_items=problem.dataset.num_items,
        axis=problem.spread.axis,
    )

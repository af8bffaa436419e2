"""The settings of one experiment: frozen dataclasses, validated field by field, from TOML and dict.

What a value may be on its own stands beside it, as a rule (`plain_settings.Rule`); the functions at the end check what
values may be together.

No file and no command line is read here: the caller hands in text or a dict.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from ltrec_jax import plain_settings
from ltrec_jax.errors import UserError
from ltrec_jax.plain_settings import AMOUNT, COUNT, POSITIVE, SHARE, Rule

Precision = Literal["float32", "bfloat16"]
ParallelMode = Literal["auto", "jit", "pmap", "shard_map"]
ColdItems = Literal["anchor", "neighbours", "ridge", "kernel_ridge", "text_map"]
SolvePrecision = Literal["float32", "float64"]
Steps = Literal["gradient", "solve", "solve_tune_solve"]
TuneOn = Literal["items", "pairs"]
Goal = Literal["explicit", "whole_data"]
Decay = Literal["cosine", "linear", "constant"]
Tracker = Literal["tensorboard", "wandb"]
PairObjective = Literal["auto", "squared_error", "whole_data", "softmax", "bpr"]
AttentionKernel = Literal["xla", "cudnn"]
Propensity = Literal["popularity", "naive_bayes"]
TableRule = Literal["lazy_adam", "sparse_adam", "rowwise_adagrad", "dense_adam"]
Posterior = Literal["vb", "gibbs"]


def is_trainable_part(text: str) -> bool:
    """Whether `text` is all, bias or top:N with N above 0: a part of an encoder that learns."""
    top = text.removeprefix("top:")
    return text in ("all", "bias") or (top != text and top.isdecimal() and int(top) > 0)


_TRAINABLE = Rule("all, bias, none or top:N with N > 0", lambda text: text == "none" or is_trainable_part(text))
_CLIP = Rule("0, or a finite number of at least 1", lambda clip: clip == 0 or 1 <= clip < math.inf)
_CUTOFFS = Rule("a list of numbers above 0", lambda cutoffs: bool(cutoffs) and min(cutoffs) >= 1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data, cut how, and the text of an item."""

    dataset: Annotated[str, Doc("name of a known dataset, or a dataset directory")] = "movielens-100k"
    split: Annotated[
        str, Doc("rule: official, random, leave_last_out, temporal, temporal_cold_items, cold_items, cold_users")
    ] = "official"
    fold: Annotated[str, Doc("fold of the official split")] = "u1"
    test: Annotated[float, SHARE, Doc("share held out for the test, where the rule needs one")] = 0.2
    validation: Annotated[float, SHARE, Doc("share of the training part held out to choose on")] = 0.1
    cold_share: Annotated[float, SHARE, Doc("share of the items (or users) that a cold rule holds out whole")] = 0.2
    cold_validation: Annotated[
        float, SHARE, Doc("share of the other items (or users) held out whole for validation")
    ] = 0.0
    per_user: Annotated[bool, Doc("draw the shares from each user's events instead of from all")] = False
    template: Annotated[str, Doc("item text from its columns, as '{title} ({year})'; empty: the dataset's own")] = ""
    user_template: Annotated[
        str,
        Doc(
            "user text from the users' columns, as '{age} years old, {gender}', for a solve of ratings or training by "
            "gradient; empty: users have none"
        ),
    ] = ""
    max_length: Annotated[int, COUNT, Doc("tokens per text; longer ones are cut and counted")] = 64


@dataclasses.dataclass(frozen=True)
class EncoderSection:
    """The pretrained text encoder."""

    name: Annotated[str, Doc("registry name, local directory or hub id")] = "all-MiniLM-L6-v2"
    precision: Annotated[Precision, Doc("operands of the matmuls; sums and master weights stay float32")] = "bfloat16"
    attention: Annotated[AttentionKernel, Doc("on a GPU: by xla, or by cudnn (bfloat16 alone)")] = "xla"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The two-tower head: score(u, i) = mu + b_u + b_i + <p_u, q_i>, q_i = W x_i + gate(n_i) v_i."""

    embedding_dim: Annotated[int, COUNT, Doc("width D of user and item vectors")] = 64
    gate_count: Annotated[float, AMOUNT, Doc("c of the gate n / (n + c): interactions until behaviour weighs half")] = (
        20.0
    )
    embedding_dropout: Annotated[float, SHARE, Doc("share of the D products p_u * q_i dropped in training")] = 0.6
    user_l2: Annotated[
        float,
        AMOUNT,
        Doc("lambda of |p_u|^2 (of each part, where a text gives one), added to every pair's squared error"),
    ] = 0.8
    item_l2: Annotated[float, AMOUNT, Doc("lambda of |v_i|^2, likewise")] = 0.005
    bias_l2: Annotated[float, AMOUNT, Doc("lambda of b_u^2 and of the item's bias residual, likewise")] = 0.03


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning by gradient."""

    objective: Annotated[
        PairObjective,
        Doc(
            "squared_error of ratings; whole_data: positive ones against 1, all pairs against 0; softmax, bpr: "
            "positive ones above others in a batch; auto: squared_error, between solves of whole_data that objective"
        ),
    ] = "auto"
    trainable: Annotated[str, _TRAINABLE, Doc("part of the encoder that learns: all, top:N, bias (BitFit), none")] = (
        "all"
    )
    head_epochs: Annotated[int, AMOUNT, Doc("epochs before that on the head alone, over frozen text vectors")] = 30
    epochs: Annotated[int, AMOUNT, Doc("epochs at most with the encoder; early stopping may end before")] = 4
    patience: Annotated[
        int, AMOUNT, Doc("stop after this many evaluations without a better validation error; 0: never")
    ] = 5
    batch_pairs: Annotated[int, COUNT, Doc("rating pairs per global batch, about")] = 2048
    batch_items: Annotated[int, COUNT, Doc("texts encoded per global batch at most; each of them once")] = 128
    propensity: Annotated[
        Propensity,
        Doc(
            "errors are weighed by the item's popularity (propensity_power), or by naive_bayes: how likely a rating of "
            "that value is observed (Schnabel et al. 2016; all items count alike in its marginal)"
        ),
    ] = "popularity"
    propensity_power: Annotated[
        float, AMOUNT, Doc("rho: errors of an item's pairs weigh n_i^-rho, of mean 1; 0: alike")
    ] = 0.0
    propensity_clip: Annotated[
        float, _CLIP, Doc("such weights are at most this many times the smallest; 0: no bound")
    ] = 10.0
    pairs_per_item: Annotated[
        int, COUNT, Doc("at most this many ratings of an item ride on one encoding of its text")
    ] = 512
    head_pairs_per_item: Annotated[int, COUNT, Doc("the same in the head phase, where nothing is encoded")] = 4
    row_length: Annotated[int, COUNT, Doc("tokens per packed row at most; rows are shorter where all texts are")] = 64
    learning_rate: Annotated[float, AMOUNT, Doc("peak for the encoder")] = 5e-5
    head_learning_rate: Annotated[float, AMOUNT, Doc("peak for projection and text bias")] = 0.005
    table_learning_rate: Annotated[float, AMOUNT, Doc("peak for user and item rows")] = 0.02
    table_optimizer: Annotated[
        TableRule,
        Doc(
            "of user, item and word rows. lazy_adam: a clock for each row; sparse_adam: one for the table, as PyTorch; "
            "dense_adam is for comparison: its cost grows with the tables"
        ),
    ] = "sparse_adam"
    joint_rate: Annotated[
        float, AMOUNT, Doc("factor on the two rates above in the encoder phase, which starts near an optimum")
    ] = 0.1
    weight_decay: Annotated[float, AMOUNT, Doc("decoupled, on the encoder's kernels and embeddings")] = 0.01
    head_weight_decay: Annotated[float, AMOUNT, Doc("decoupled, on projection and text bias")] = 0.3
    table_weight_decay: Annotated[
        float, AMOUNT, Doc("decoupled, on user and item rows where a batch touches them (dense_adam: on all)")
    ] = 0.0
    warmup: Annotated[float, SHARE, Doc("share of the steps in which the rates rise linearly")] = 0.1
    decay: Annotated[Decay, Doc("of the rates after that: cosine or linear to 0, or constant")] = "cosine"
    layer_decay: Annotated[
        float, AMOUNT, Doc("factor on the encoder's rate from each layer to the one below; 1: none")
    ] = 1.0
    accumulate: Annotated[
        int, COUNT, Doc("slices of a batch that go through one after the other: less memory, same step")
    ] = 1
    average: Annotated[
        float,
        SHARE,
        Doc(
            "decay b of the moving average of encoder and head that is evaluated, without their first weights; rows of "
            "users, items and words are evaluated as the last step left them; 0: none"
        ),
    ] = 0.0
    clip_norm: Annotated[
        float,
        AMOUNT,
        Doc("global norm of the gradient of encoder (its word rows too) and head is clipped to this; 0: never"),
    ] = 1.0
    cache_layers: Annotated[
        bool, Doc("under top:N, hidden states below the layers that learn are computed once and kept on disk")
    ] = True
    remat: Annotated[bool, Doc("compute a layer's activations again backwards: far less memory, a third slower")] = (
        False
    )
    scan_layers: Annotated[bool, Doc("compile one layer for all of them: a deep encoder compiles sooner")] = False
    encoder_dropout: Annotated[bool, Doc("use the encoder's own dropout rates in training")] = False
    contrast_weight: Annotated[
        float,
        AMOUNT,
        Doc("of a contrast of two dropout views of each text of a batch (SimCSE; encoder_dropout); 0: none"),
    ] = 0.0
    contrast_temperature: Annotated[float, POSITIVE, Doc("of that contrast's cosines")] = 0.05
    parallel: Annotated[ParallelMode, Doc("auto: pmap on several local devices, else jit")] = "auto"
    shard_tables: Annotated[bool, Doc("split user and item rows over the devices instead of a copy on each")] = False
    log_every: Annotated[int, COUNT, Doc("steps between two rows of metrics.jsonl")] = 10
    save_minutes: Annotated[float, AMOUNT, Doc("save after so many minutes too; 0: at the end of an epoch alone")] = (
        10.0
    )
    track: Annotated[
        tuple[Tracker, ...], Doc("where metrics go beside metrics.jsonl: tensorboard, wandb (each needs its extra)")
    ] = ()
    checkpoints: Annotated[int, COUNT, Doc("finished checkpoints kept beside the best one")] = 2

    @property
    def predicts_ratings(self) -> bool:
        """Whether the scores of a model trained so are on the rating scale."""
        return self.objective in ("auto", "squared_error")


@dataclasses.dataclass(frozen=True)
class WholeDataConfig:
    """Top-N by exact solves (`anchored_als`): unobserved pairs are weak zeros, items stay near their texts."""

    anchor_scale: Annotated[
        float, AMOUNT, Doc("length s of an anchor: x = s * the text's direction from the mean text")
    ] = 0.4
    unobserved_weight: Annotated[
        float, AMOUNT, Doc("a0: weight of an unobserved pair beside 1 for an observed one")
    ] = 0.1
    l2: Annotated[float, AMOUNT, Doc("lambda per (weighted) event of |p_u|^2 and of |q_i - x_i|^2")] = 0.03
    propensity_power: Annotated[float, AMOUNT, Doc("rho: positives of an item weigh n_i^-rho; 0: all alike")] = 0.15
    alternations: Annotated[int, COUNT, Doc("times that users, then items, are solved")] = 6
    cold: Annotated[ColdItems, Doc("where a never-seen item's vector comes from: see solve.cold_start")] = "text_map"
    cold_l2: Annotated[float, AMOUNT, Doc("lambda of that ridge or map")] = 100.0
    cold_gain: Annotated[float, AMOUNT, Doc("gamma: cold vectors times this; a request can turn it further")] = 1.0
    lexical_share: Annotated[
        float, SHARE, Doc("a: cosines of texts are (1 - a) the encoder's + a that of their words (TF-IDF); 0: no words")
    ] = 0.0
    lexical_rank: Annotated[int, COUNT, Doc("dimensions that words add to the vectors; fewer of few texts")] = 128
    neighbours: Annotated[int, COUNT, Doc("texts that a cold item takes from, with cold = neighbours")] = 30
    temperature: Annotated[float, POSITIVE, Doc("of the softmax over their cosines")] = 0.2


@dataclasses.dataclass(frozen=True)
class BayesConfig:
    """Ratings by Bayesian factorisation anchored at side information (`bayes`): penalties and noise are learnt."""

    method: Annotated[Posterior, Doc("vb: variational Bayes; gibbs: sampled, a little better, slower")] = "vb"
    factors: Annotated[int, COUNT, Doc("D under variational Bayes")] = 8
    iterations: Annotated[int, COUNT, Doc("of variational Bayes; 100 have not converged")] = 200
    gibbs_factors: Annotated[int, COUNT, Doc("D of a Gibbs sample, and of the served vectors")] = 16
    sweeps: Annotated[int, COUNT, Doc("Gibbs sweeps, burn-in included")] = 240
    burn_in: Annotated[int, AMOUNT, Doc("sweeps that are thrown away")] = 40
    factor_sd: Annotated[float, POSITIVE, Doc("prior sd of a factor, for ratings of variance 1")] = 0.8
    bias_sd: Annotated[float, POSITIVE, Doc("prior sd of a bias, for ratings of variance 1")] = 0.4
    user_noise: Annotated[float, POSITIVE, Doc("a_u ~ Gamma(this, this): how alike users are in their noise")] = 5.0
    item_noise: Annotated[float, POSITIVE, Doc("g_i ~ Gamma(this, this)")] = 10.0
    lexical_share: Annotated[
        float,
        SHARE,
        Doc("a: above 0, words (TF-IDF) are side information too, and weigh so in placing new texts; 0: no words"),
    ] = 0.0
    lexical_rank: Annotated[int, COUNT, Doc("dimensions of the words of a text; fewer of few texts")] = 128
    blocks: Annotated[
        tuple[str, ...],
        Doc(
            "side information: text, words (with a lexical_share), popularity, singular, history, profile (with a "
            "data.user_template), columns of the tables; empty: all"
        ),
    ] = ()


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """What training is made of: exact solves around the fine-tuning of the encoder, or gradient alone."""

    steps: Annotated[Steps, Doc("solve_tune_solve, solve (encoder frozen) or gradient (see [train])")] = (
        "solve_tune_solve"
    )
    goal: Annotated[Goal, Doc("of the solves: explicit (ratings; [bayes]) or whole_data (top-N lists)")] = "explicit"
    solve_precision: Annotated[
        SolvePrecision, Doc("arithmetic of the solves; float64: twice the memory; what is served stays float32")
    ] = "float32"
    tune_on: Annotated[TuneOn, Doc("solved item vectors (each text once an epoch), or pairs end to end")] = "items"
    trainable: Annotated[
        str, _TRAINABLE, Doc("part of the encoder that learns between the solves, as train.trainable")
    ] = "top:2"
    epochs: Annotated[int, AMOUNT, Doc("of that fine-tuning")] = 8
    batch_items: Annotated[int, COUNT, Doc("texts per batch of it")] = 32
    learning_rate: Annotated[float, AMOUNT, Doc("peak for the encoder")] = 5e-5
    head_learning_rate: Annotated[float, AMOUNT, Doc("peak for the map beside the anchors' own")] = 5e-5
    solve_again: Annotated[
        bool, Doc("false (lists): users and warm items stay as first solved; what texts have learnt places cold ones")
    ] = True


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What the report measures."""

    cutoffs: Annotated[tuple[int, ...], _CUTOFFS, Doc("k of the ranking metrics")] = (10, 20)
    positive_rating: Annotated[
        float, Doc("least rating of a like; 0: the dataset's own, else the top quarter of its scale")
    ] = 0.0
    baselines: Annotated[
        tuple[str, ...], Doc("compared with; empty: the usual ones for a model that ranks, popularity for ratings")
    ] = ()
    baseline_settings: Annotated[str, Doc("TOML file of their settings, as `ltrec tune` writes it")] = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. Every field has a default: the quickstart's."""

    seed: Annotated[int, AMOUNT, Doc("the one source of randomness")] = 0
    refit: Annotated[bool, Doc("after choosing on validation, train (or solve) again on train + validation")] = True
    data: DataConfig = DataConfig()
    encoder: EncoderSection = EncoderSection()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    whole_data: WholeDataConfig = WholeDataConfig()
    bayes: BayesConfig = BayesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        plain_settings.check_rules(self)
        for check in (_check_objective, _check_contrast, _check_texts, _check_solves):
            check(self)

    @property
    def solves_on_pairs(self) -> bool:
        """Whether pairs are fine-tuned on, between solves of whole_data, under the objective of those solves."""
        schedule = self.schedule
        between = schedule.steps == "solve_tune_solve" and schedule.tune_on == "pairs"
        return between and schedule.goal == "whole_data" and self.train.objective == "auto"


def from_dict(values: Mapping[str, Any]) -> Config:
    """A config from nested plain values (`plain_settings.from_dict`)."""
    return plain_settings.from_dict(values, Config)


def from_toml(text: str, source: str = "configuration") -> Config:
    """A config from TOML text; `source` names the file in error messages."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid TOML: {error}.") from error
    return from_dict(values)


def _objective_of_likes(config: Config) -> str | None:
    """That by which pairs are learnt from where only likes count; None where ratings are predicted."""
    if config.solves_on_pairs:
        return "whole_data"
    return None if config.train.predicts_ratings else config.train.objective


def _learns_on_pairs(schedule: ScheduleConfig) -> bool:
    return schedule.steps == "gradient" or (schedule.steps == "solve_tune_solve" and schedule.tune_on == "pairs")


def _check_objective(config: Config) -> None:
    train, objective = config.train, _objective_of_likes(config)
    if not train.predicts_ratings and not _learns_on_pairs(config.schedule):
        raise UserError(
            f"Setting train.objective = {train.objective} is for training by gradient: set schedule.steps to gradient."
        )
    if train.accumulate > 1 and objective is not None:
        raise UserError(
            f"Setting train.accumulate must be 1 under the objective {objective}: it compares a pair with the other "
            "items of its batch, and slices that go through one after the other do not see each other's. For less "
            "memory lower train.batch_items, or set train.remat."
        )
    if train.propensity != "naive_bayes":
        return
    if objective is not None:
        raise UserError(
            "Setting train.propensity = naive_bayes weighs ratings by their value, and the objective "
            f"{objective} learns from likes, which are all alike: take popularity."
        )
    if train.propensity_power:
        raise UserError(
            "Setting train.propensity_power belongs to train.propensity = popularity: leave it 0 under naive_bayes."
        )


def _check_contrast(config: Config) -> None:
    train, schedule = config.train, config.schedule
    if not train.contrast_weight:
        return
    if not _learns_on_pairs(schedule):
        raise UserError(
            "Setting train.contrast_weight is read by training on pairs: set schedule.steps to gradient or "
            "schedule.tune_on to pairs, or leave it 0."
        )
    if (train.trainable if schedule.steps == "gradient" else schedule.trainable) == "none":
        raise UserError("Setting train.contrast_weight needs an encoder that learns, and trainable is none.")
    if not train.encoder_dropout:
        raise UserError(
            "Setting train.contrast_weight compares two views of a text that dropout makes: set train.encoder_dropout."
        )
    if train.accumulate > 1:
        raise UserError("Setting train.accumulate must be 1 with train.contrast_weight, which compares all texts.")


def _check_texts(config: Config) -> None:
    data, train, schedule = config.data, config.train, config.schedule
    if train.row_length < data.max_length:
        raise UserError(
            f"Setting train.row_length ({train.row_length}) must hold a whole text: at least data.max_length "
            f"({data.max_length})."
        )
    if data.user_template and schedule.steps == "gradient" and train.objective == "whole_data":
        raise UserError(
            "Setting data.user_template is not read under train.objective = whole_data, whose users have vectors of "
            "their own: take another objective, or leave it empty."
        )
    if data.user_template and schedule.steps != "gradient" and schedule.goal != "explicit":
        raise UserError(
            "Setting data.user_template is read by a solve of ratings and by training by gradient; a solve for lists "
            "has no place for users' texts. Set schedule.goal to explicit or schedule.steps to gradient, or leave it "
            "empty."
        )


def _check_solves(config: Config) -> None:
    schedule, whole_data, bayes = config.schedule, config.whole_data, config.bayes
    solves = schedule.steps != "gradient"
    if not schedule.solve_again and (schedule.goal, schedule.steps) != ("whole_data", "solve_tune_solve"):
        raise UserError(
            "Setting schedule.solve_again = false is for lists, where a cold item has its vector from its text alone, "
            "and for fine-tuning after a solve: set schedule.goal to whole_data and schedule.steps to "
            f"solve_tune_solve, not {schedule.goal} and {schedule.steps}, or leave it true."
        )
    if whole_data.lexical_share and not (solves and schedule.goal == "whole_data"):
        raise UserError(
            "Setting whole_data.lexical_share is read by solves for lists alone: set schedule.goal to whole_data and "
            "schedule.steps to solve or solve_tune_solve, or leave it 0."
        )
    if bayes.lexical_share and not (solves and schedule.goal == "explicit"):
        raise UserError(
            "Setting bayes.lexical_share is read by solves of ratings alone: set schedule.goal to explicit and "
            "schedule.steps to solve or solve_tune_solve, or leave it 0."
        )
    if bayes.burn_in >= bayes.sweeps:
        raise UserError(f"Setting bayes.burn_in ({bayes.burn_in}) must be below bayes.sweeps ({bayes.sweeps}).")
    for name, asked, setting in (
        ("words", bayes.lexical_share > 0, "bayes.lexical_share"),
        ("profile", bool(config.data.user_template) and solves, "data.user_template"),
    ):
        if bayes.blocks and asked and name not in bayes.blocks:
            raise UserError(f"Setting bayes.blocks leaves out {name}, which {setting} asks for: name it too.")
    if "words" in bayes.blocks and not bayes.lexical_share:
        raise UserError("Setting bayes.blocks names words: set bayes.lexical_share above 0.")

"""The JSON that the HTTP service takes and gives, with its limits. Extra: `serve` (pydantic comes with FastAPI).

Unknown fields, wrong types, NaN and anything beyond a limit are refused by the models themselves.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltrec_jax.serve.service import MOST_COLD_GAIN

MOST_ITEMS = 1000
LONGEST_TEXT = 10_000
LONGEST_ID = 512
MOST_QUERIES = 256

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Ids = Annotated[list[Id], Field(max_length=MOST_ITEMS)]
Count = Annotated[int, Field(ge=1, le=MOST_ITEMS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Gain = Annotated[float, Field(ge=0.0, le=MOST_COLD_GAIN)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="null")


class RecommendRequest(_Message):
    """Whom to recommend for (exactly one of `user`, `liked`/`rated`, `text`) and what may be shown."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user": "42", "k": 5},
                {"liked": ["1", "50"], "k": 5, "tail": 0.3},
                {"text": "a slow film about the sea", "filters": {"genres": ["Drama"]}},
            ]
        }
    )

    user: Id | None = Field(None, description="a user the model knows, or who has given feedback")
    liked: Ids = Field(default_factory=list, description="items that somebody new likes")
    rated: dict[Id, Number] = Field(default_factory=dict, max_length=MOST_ITEMS, description="item id to rating")
    text: Text | None = Field(None, description="what somebody is looking for")
    k: Count = Field(10, description="how many")
    filters: dict[Id, Annotated[list[str], Field(max_length=MOST_ITEMS)]] = Field(
        default_factory=dict, max_length=16, description="attribute to the values of which one must match"
    )
    allow: Ids | None = Field(None, description="only these items")
    deny: Ids = Field(default_factory=list, description="none of these items")
    show_seen: bool = Field(False, description="also items the user has seen")
    tail: Share = Field(
        0.0,
        description="0: by score. A model solved for lists: scores times n^-tail of n training events, the report's "
        "dial. Others: 1 shows the rarest of the good candidates first",
    )
    cold_gain: Gain = Field(
        1.0,
        description="scores of items without training events times this; above 1, more new items. Only of a model "
        "solved for lists (see `cold_gain` of /v1/ready)",
    )
    diversity: Share = Field(0.0, description="0: by score; 1: as unlike each other as can be")
    reasons: Annotated[int, Field(ge=0, le=10)] = Field(2, description="liked items to name per recommendation")
    log: bool = Field(False, description="count this answer as shown to the user")

    @model_validator(mode="after")
    def _one_way(self) -> "RecommendRequest":
        if sum((self.user is not None, bool(self.liked or self.rated), self.text is not None)) != 1:
            raise ValueError("say for whom: exactly one of user, liked/rated, text")
        if self.log and self.user is None:
            raise ValueError("log needs a user")
        return self


class RecommendBatch(_Message):
    """Several requests, answered in their order."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1, max_length=MOST_QUERIES)]


class Item(_Message):
    """One recommended item and why: score = bias + from_text + from_behaviour."""

    rank: int
    item_id: str
    text: str
    group: Literal["head", "mid", "tail", "new"]
    score: float
    bias: float
    from_text: float
    from_behaviour: float
    resembles: list[str]


class RecommendAnswer(_Message):
    """The items, best first."""

    items: list[Item]


class RecommendBatchAnswer(_Message):
    """One answer per request."""

    answers: list[RecommendAnswer]


class SimilarRequest(_Message):
    """Items like an item."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item": "1", "k": 5}]})

    item: Id
    k: Count = 10
    by: Literal["model", "text"] = Field("model", description="what likeness is: all the model knows, or the texts")


class SearchRequest(_Message):
    """Items whose texts are like a query."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "toys come alive", "k": 5}]})

    text: Text
    k: Count = 10


class Found(_Message):
    """One item found by likeness."""

    rank: int
    item_id: str
    text: str
    group: Literal["head", "mid", "tail", "new"]
    cosine: float


class FoundAnswer(_Message):
    """The items, most alike first."""

    items: list[Found]


class PutItem(_Message):
    """An item's text and attributes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "The Sea Wolf (1941). Drama", "attributes": {}}]}
    )

    text: Text
    attributes: dict[Id, str | bool | int | Number | list[str] | None] = Field(default_factory=dict, max_length=64)


class PutAnswer(_Message):
    """What became of an item."""

    item_id: str
    created: bool
    group: Literal["head", "mid", "tail", "new"]
    truncated: bool = Field(description="the text was longer than the encoder reads; its beginning counts")


class FeedbackRequest(_Message):
    """What a user did with an item: a rating, a click, or both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user": "42", "item": "1", "rating": 5.0}]})

    user: Id
    item: Id
    rating: Number | None = None
    click: bool = False

    @model_validator(mode="after")
    def _something(self) -> "FeedbackRequest":
        if self.rating is None and not self.click:
            raise ValueError("give a rating, or click: true")
        return self


class Acknowledged(_Message):
    """It is on the disk."""

    saved: Literal[True] = True


class Health(_Message):
    """The process answers."""

    status: Literal["alive"] = "alive"
    version: str


class Ready(_Message):
    """What is served."""

    status: Literal["ready"] = "ready"
    users: int
    items: int
    dataset: str
    scale: list[float] = Field(description="lowest and highest rating")
    attributes: list[str] = Field(description="what filters may name")
    cold_gain: bool = Field(description="whether requests may turn cold_gain")


class Problem(_Message):
    """What is wrong and what to do."""

    error: str
    request_id: str
    fields: list[dict[str, Any]] = Field(default_factory=list)

"""The service over HTTP: FastAPI on top of `service`, with limits, a token, metrics and a page. Extra: `serve`.

Known users are answered in the event loop (a fraction of a millisecond); texts wait for the encoder without holding
anybody up; writes, which wait for the disk, run in threads. Nothing here knows how an answer is made. Importing this
module needs the extra: `make_app` is called by the one who has checked for it.
"""

import asyncio
import contextlib
import dataclasses
import importlib.resources
import signal
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from ltrec_jax.errors import UserError
from ltrec_jax.serve import messages as m
from ltrec_jax.serve.guard import LOG, Guard, Limits
from ltrec_jax.serve.journal import JournalError
from ltrec_jax.serve.placing import Placed
from ltrec_jax.serve.service import Query, Recommendation, Service, Similar
from ltrec_jax.serve.telemetry import Telemetry
from ltrec_jax.version import __version__

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": m.Problem, "description": text}
    for code, text in {
        400: "the request cannot be read",
        401: "the token is missing or wrong",
        404: "no such user or item",
        413: "the body is too large",
        422: "a field is unknown, missing, of the wrong type or beyond its limit",
        429: "too many requests",
        503: "not ready, or the log cannot be written",
    }.items()
}
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
ItemId = Annotated[str, InPath(min_length=1, max_length=m.LONGEST_ID)]


def make_app(
    open_service: Callable[[], Service],
    *,
    swap: Callable[[Service], None] | None = None,
    limits: Limits | None = None,
    token: str | None = None,
) -> FastAPI:
    """The application. `open_service` is called in the background once the server runs: until it is done and warm,
    every answer but health is 503. `swap` is called, in the background too, when the process gets SIGHUP. With `token`,
    requests need `Authorization: Bearer <token>`.
    """
    limits, telemetry, holder = limits or Limits(), Telemetry(), _Holder(open_service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(holder.open())
        if swap is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: holder.start_swap(swap))
        yield
        await opening
        await holder.swapped()
        await asyncio.to_thread(holder.close)

    app = FastAPI(
        title="ltrec_jax",
        version=__version__,
        summary="Recommendations for rare and new items too",
        lifespan=lifespan,
        responses=_PROBLEMS,
    )
    app.state.holder = holder
    app.add_middleware(Guard, limits=limits, token=token, telemetry=telemetry)
    _handle_problems(app)
    _answering(app, holder)
    _writing(app, holder)
    _watching(app, holder, telemetry)
    return app


class _Holder:
    """The service once it is there."""

    def __init__(self, open_service: Callable[[], Service]) -> None:
        self._open_service = open_service
        self._service: Service | None = None
        self._swapping: asyncio.Task[None] | None = None
        self.problem = "starting: the model is loaded and compiled. Ask /v1/ready again in a moment."

    @property
    def service(self) -> Service:
        if self._service is None:
            raise _NotReadyError(self.problem)
        return self._service

    async def open(self) -> None:
        """Load, replay, warm up. What goes wrong is told by every answer, and the process lives on to tell it."""

        def work() -> Service:
            service = self._open_service()
            service.warm_up()
            return service

        try:
            self._service = await asyncio.to_thread(work)
        except UserError as error:
            self.problem = str(error)

    def start_swap(self, swap: Callable[[Service], None]) -> None:
        """Swap in the background; one at a time. A bundle that cannot be read leaves the old one in place."""
        if self._service is None or (self._swapping is not None and not self._swapping.done()):
            LOG.warning("nothing is swapped: a start or a swap is under way")
            return
        self._swapping = asyncio.create_task(asyncio.to_thread(self._swap, swap, self._service))

    def _swap(self, swap: Callable[[Service], None], service: Service) -> None:
        try:
            swap(service)
            LOG.warning("the new bundle is served")
        except UserError as error:
            LOG.error("the old bundle is kept: %s", error)

    async def swapped(self) -> None:
        """Wait for a swap under way."""
        if self._swapping is not None:
            await self._swapping

    def close(self) -> None:
        if self._service is not None:
            self._service.close()


class _NotReadyError(Exception):
    """Nothing can be answered yet."""


def _answering(app: FastAPI, holder: _Holder) -> None:
    @app.post("/v1/recommend", tags=["ask"])
    async def recommend(request: m.RecommendRequest) -> m.RecommendAnswer:
        """Items for one user, known, new or described."""
        return (await _recommend(holder.service, [request]))[0]

    @app.post("/v1/recommend/batch", tags=["ask"])
    async def recommend_batch(batch: m.RecommendBatch) -> m.RecommendBatchAnswer:
        """The same for several at once."""
        service = holder.service
        answers: list[m.RecommendAnswer] = []
        for request in batch.requests:
            answers += await _recommend(service, [request])
            await asyncio.sleep(0)  # others get their turn
        return m.RecommendBatchAnswer(answers=answers)

    @app.post("/v1/similar", tags=["ask"])
    async def similar(request: m.SimilarRequest) -> m.FoundAnswer:
        """Items like an item."""
        service = holder.service
        _present(service, request.item)
        return _found(service.similar(request.item, request.k, by=request.by))

    @app.post("/v1/search", tags=["ask"])
    async def search(request: m.SearchRequest) -> m.FoundAnswer:
        """Items whose texts are like a query."""
        service = holder.service
        return _found(service.search(request.text, request.k, await _placed(service, [request.text])))


def _writing(app: FastAPI, holder: _Holder) -> None:
    @app.put("/v1/items/{item_id:path}", tags=["change"])
    async def put_item(item_id: ItemId, item: m.PutItem) -> m.PutAnswer:
        """Add an item by its text, or change one. It can be recommended in the next request."""
        service = holder.service
        placed = await _placed(service, [item.text])
        attributes = {name: value for name, value in item.attributes.items() if value is not None}
        created = await asyncio.to_thread(service.put_item, item_id, item.text, attributes, placed)
        group = service.items.group(service.items.number(item_id))
        return m.PutAnswer(item_id=item_id, created=created, group=group, truncated=placed.cut > 0)  # type: ignore[arg-type]

    @app.delete("/v1/items/{item_id:path}", tags=["change"])
    async def delete_item(item_id: ItemId) -> m.Acknowledged:
        """Take an item out of every answer."""
        service = holder.service
        _present(service, item_id)
        await asyncio.to_thread(service.delete_item, item_id)
        return m.Acknowledged()

    @app.post("/v1/feedback", tags=["change"])
    async def feedback(request: m.FeedbackRequest) -> m.Acknowledged:
        """A rating or a click. The user's next recommendations know of it."""
        service = holder.service
        _present(service, request.item)
        await asyncio.to_thread(service.feedback, request.user, request.item, request.rating, click=request.click)
        return m.Acknowledged()


def _watching(app: FastAPI, holder: _Holder, telemetry: Telemetry) -> None:
    page = importlib.resources.files("ltrec_jax.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/v1/health", tags=["watch"])
    async def health() -> m.Health:
        """Whether the process lives."""
        return m.Health(version=__version__)

    @app.get("/v1/ready", tags=["watch"])
    async def ready() -> m.Ready:
        """Whether it can answer."""
        service = holder.service
        return m.Ready(
            users=len(service.users),
            items=service.items.num_alive,
            dataset=str(service.bundle.about["dataset"]),
            scale=[float(bound) for bound in service.bundle.about["scale"]],
            attributes=service.items.attributes,
            cold_gain=service.has_cold_gain,
        )

    @app.get("/v1/users", tags=["ask"])
    async def users() -> list[str]:
        """Some users to try: the first hundred of the model."""
        return holder.service.users.some(100)

    @app.get("/metrics", tags=["watch"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus: requests, seconds, and click-through rates by popularity group."""
        body, kind = telemetry.prometheus(holder.service.clicks)
        return Response(body, media_type=kind)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})


async def _recommend(service: Service, requests: list[m.RecommendRequest]) -> list[m.RecommendAnswer]:
    queries = [_query(service, request) for request in requests]
    texts = [query.text for query in queries if query.text is not None]
    placed = await _placed(service, texts) if texts else None
    answers = service.recommend(queries, placed)
    for request, answer in zip(requests, answers, strict=True):
        if request.log and request.user is not None:
            service.shown(request.user, answer)
    return [m.RecommendAnswer(items=[_item(one) for one in answer]) for answer in answers]


def _query(service: Service, request: m.RecommendRequest) -> Query:
    if request.user is not None and request.user not in service.users:
        raise HTTPException(404, f"Unknown user {request.user!r}. Send liked items or a text for somebody new.")
    for item in [*request.liked, *request.rated]:
        _present(service, item)
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(Query)}
    return Query(**fields)


def _item(one: Recommendation) -> m.Item:
    # Values of our own: they need no second check.
    return m.Item.model_construct(**{**vars(one), "resembles": list(one.resembles)})


def _found(answer: list[Similar]) -> m.FoundAnswer:
    return m.FoundAnswer(items=[m.Found.model_construct(**vars(one)) for one in answer])


def _present(service: Service, item: str) -> None:
    if item not in service.items:
        raise HTTPException(404, f"Unknown item {item!r}. PUT /v1/items/{{item_id}} adds one.")


async def _placed(service: Service, texts: list[str]) -> Placed:
    return await asyncio.wrap_future(service.placer.submit(texts))


def _handle_problems(app: FastAPI) -> None:
    def problem(request: Request, status: int, text: str, fields: Any = ()) -> JSONResponse:
        body = m.Problem(error=text, request_id=request.scope.get("request_id", ""), fields=list(fields))
        return JSONResponse(body.model_dump(), status, headers={"Retry-After": "1"} if status == 503 else None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return problem(request, error.status_code, str(error.detail))

    @app.exception_handler(_NotReadyError)
    async def not_ready(request: Request, error: _NotReadyError) -> JSONResponse:
        return problem(request, 503, str(error))

    @app.exception_handler(JournalError)
    async def full(request: Request, error: JournalError) -> JSONResponse:
        return problem(request, 503, str(error))

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> JSONResponse:
        return problem(request, 422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI reads JSON from nothing else: a page elsewhere cannot make a browser send it unasked.
        if request.method in ("POST", "PUT") and "json" not in request.headers.get("content-type", ""):
            return problem(request, 422, "Send the body as JSON, with the header 'Content-Type: application/json'.")
        fields = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in error.errors()]
        return problem(request, 422, "; ".join(f"{one['where']}: {one['what']}" for one in fields[:3]), fields)

"""What stands before every request: its id, the token, the rate, the size of its body, the log line and the counts.

Plain ASGI: a request costs microseconds here. Out of scope: what the body says (`messages`).
"""

import collections
import dataclasses
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ltrec_jax.serve.telemetry import Telemetry

LOG = logging.getLogger("ltrec.serve")
_OPEN = {"/v1/health", "/"}
_MOST_CLIENTS = 10_000

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on what a client may ask: bytes of a body, and requests per second and client (0: no bound)."""

    body_bytes: int = 1 << 20
    requests_per_second: float = 0.0
    burst: int = 100


class Guard:
    """The middleware. A client is an address; a refused request never reaches the application."""

    def __init__(self, app: Any, *, limits: Limits, token: str | None, telemetry: Telemetry) -> None:
        self._app, self._limits, self._telemetry = app, limits, telemetry
        self._token = None if token is None else f"Bearer {token}".encode()
        self._allowance: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["request_id"] = secrets.token_hex(8)
        started, status, begun = time.perf_counter(), 500, False

        async def counted(message: _Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", scope["request_id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._bounded(scope, receive, counted)
            else:
                await _refuse(counted, scope["request_id"], *refusal)
        except Exception:  # the last place that can turn a fault of ours into an answer; it is logged whole
            LOG.exception("request %s failed", scope["request_id"])
            if begun:
                raise  # half an answer is out: the connection has to break
            await _refuse(counted, scope["request_id"], 500, "This is our fault; the server's log has more.")
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        if scope["path"] in _OPEN:
            return None
        headers = dict(scope["headers"])
        if self._token is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            return 401, "Send the header 'Authorization: Bearer TOKEN' with the server's token."
        if not self._may_ask(str((scope.get("client") or ("",))[0])):
            return 429, f"More than {self._limits.requests_per_second:g} requests per second. Wait and try again."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "Content-Length is not a number."
        if int(length) > self._limits.body_bytes:
            return 413, self._too_large
        return None

    @property
    def _too_large(self) -> str:
        return f"The body is larger than {self._limits.body_bytes:,} bytes. Send fewer items or shorter texts."

    async def _bounded(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Run the application on a body that is read no further than the limit, whatever its header claims."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._limits.body_bytes:
                await _refuse(send, scope["request_id"], 413, self._too_large)
                return
        whole: list[_Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> _Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)

    def _may_ask(self, client: str) -> bool:
        """Token bucket: `burst` requests at once, refilled at the rate."""
        rate, burst = self._limits.requests_per_second, float(self._limits.burst)
        if rate <= 0:
            return True
        now = time.monotonic()
        left, at = self._allowance.pop(client, (burst, now))
        left = min(burst, left + (now - at) * rate)
        self._allowance[client] = (max(left - 1.0, 0.0) if left >= 1.0 else left, now)
        while len(self._allowance) > _MOST_CLIENTS:
            self._allowance.popitem(last=False)
        return left >= 1.0

    def _note(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        # The route's pattern, not the path: no user's or item's id is logged or becomes a label.
        route = getattr(scope.get("route"), "path", "other")
        self._telemetry.count(scope["method"], route, status, seconds)
        if LOG.isEnabledFor(logging.INFO):
            line = {"request": scope["request_id"], "method": scope["method"], "route": route, "status": status}
            LOG.info(json.dumps({**line, "ms": round(1000 * seconds, 2)}))


async def _refuse(send: _Send, request_id: str, status: int, text: str) -> None:
    body = json.dumps({"error": text, "request_id": request_id, "fields": []}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Who may ask. Law: whoever may ask can run code here; what leaves in doubt who asks is refused, its body unread.

With a token that is the bearer of the token. Without one (on the loopback only) it is whoever is on this machine, and
then a browser is the danger: a page from anywhere can send requests to 127.0.0.1, and can give its own name
that address (DNS rebinding). So the name asked for must be one of this machine, a request that changes something
must not come from another site, and must say that it is JSON, which no page may say to others without their consent.
Nothing here ever gives that consent (CORS). ``refusal`` is pure.
"""

from __future__ import annotations

import hmac
import logging
import re
from typing import NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skate.admin.answers import Failure, failure_response
from skate.core.admin_options import is_loopback
from skate.core.clock import Clock
from skate.core.environment import ADMIN_TOKEN
from skate.core.pace import Pace
from skate.dataplane.proxy.front import FORWARDED

logger = logging.getLogger("skate.admin")

LINES_MAX = 5  # of the log in a second, about requests that were refused
READING = ("GET", "HEAD", "OPTIONS")  # change nothing
WITH_BODY = ("POST", "PUT")  # other methods are nowhere possible, which the routing says
OWN_SITE = (b"same-origin", b"none")  # of Sec-Fetch-Site; none: the user's own doing, such as a typed address
JSON = b"application/json"
CHALLENGE = {"www-authenticate": 'Bearer realm="skate"'}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(:\d{1,5})?")

# Nobody else's page may show or load an answer, or guess what it is, and nobody keeps it.
ON_EVERY_ANSWER = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

Headers = list[tuple[bytes, bytes]]


class Guard:
    """The application behind it sees only requests that may be made."""

    def __init__(self, app: ASGIApp, token: str | None, clock: Clock) -> None:
        self.app = app
        self.token = token
        self.clock = clock
        self.pace = Pace(LINES_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; only HTTP comes here."""

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ON_EVERY_ANSWER)
            await send(message)

        refused = refusal(scope["method"], scope["headers"], self.token)
        if refused is None:
            await self.app(scope, receive, send_more)
            return
        if (skipped := self.pace.allow(self.clock.now())) is not None:
            who, more = (scope.get("client") or ("somebody",))[0], f" ({skipped} more were, too)" if skipped else ""
            logger.warning("a %s from %s was refused: %s%s", scope["method"], who, refused, more)
        await failure_response(refused)(scope, receive, send_more)


def refusal(method: str, headers: Headers, token: str | None) -> Failure | None:
    """Why a request is not taken; None: it is."""
    found = _Found(headers)
    refused = _unknown(found) if token is None else _without_token(found, token)
    if refused is None and method not in READING:
        refused = _from_elsewhere(found)
        if refused is None and method in WITH_BODY:
            refused = _no_json(found)
    return refused


class _Found(NamedTuple):
    headers: Headers

    def all(self, name: bytes) -> list[bytes]:
        return [value.strip() for key, value in self.headers if key.lower() == name]


def _without_token(found: _Found, token: str) -> Failure | None:
    given = found.all(b"authorization")
    if len(given) == 1:
        scheme, _, value = given[0].partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), token.encode()):
            return None
    what = "names another token" if given else "has no token"
    return Failure(401, "Unauthorized", f"the request {what}: send Authorization: Bearer TOKEN", headers=CHALLENGE)


def _unknown(found: _Found) -> Failure | None:
    if any(found.all(name) for name in FORWARDED):
        return _forbidden(
            "a proxy in front speaks for somebody else, and this API has no token; give it one, in "
            f"{ADMIN_TOKEN} or in the file of --admin-token-file, before others are let in"
        )
    hosts = found.all(b"host")
    if len(hosts) != 1 or not _is_own(hosts[0]):
        return _forbidden("the Host header must name this machine, as localhost or 127.0.0.1; this API has no token")
    return None


def _is_own(host: bytes) -> bool:
    split = _HOST.fullmatch(host.decode("latin-1").lower())
    return split is not None and is_loopback(split[1])


def _from_elsewhere(found: _Found) -> Failure | None:
    own = {host.lower() for host in found.all(b"host")}
    for origin in found.all(b"origin"):
        if origin.partition(b"://")[2].lower() not in own:
            return _forbidden("a page of another origin must not change anything here (Origin)")
    if any(site.lower() not in OWN_SITE for site in found.all(b"sec-fetch-site")):
        return _forbidden("a page of another site must not change anything here (Sec-Fetch-Site)")
    return None


def _no_json(found: _Found) -> Failure | None:
    kinds = found.all(b"content-type")
    if len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == JSON:
        return None
    return Failure(415, "UnsupportedMediaType", "say Content-Type: application/json, and send JSON")


def _forbidden(why: str) -> Failure:
    return Failure(403, "Forbidden", why)

"""A request router as a user writes it; proxies import it from here."""

from __future__ import annotations

from collections.abc import Sequence

from skate.routers import CallView, Candidate, RequestRouter


class Ordinal(RequestRouter):
    """The replica whose place in the order of ids the call names, by its key or by a header."""

    def __init__(self, header: str) -> None:
        self.header_name = header

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        named = call.routing_key or call.header(self.header_name) or "0"
        chosen = sorted(candidates, key=lambda one: int(one.id.rpartition("#")[2]))[int(named)]
        return chosen if chosen.has_room else None

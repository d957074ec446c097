# SPDX-License-Identifier: Apache-2.0
"""What the request log says: which requests failed, which were slow, since when all is well again. Pure functions.

Slowness counts from the moment a request was due, not from when it was sent: a load generator that is late itself
must not make the shop look fast.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

SLOW = 0.3  # seconds
GREEN = 10.0  # seconds without a failed or slow request until the shop counts as restored


@dataclass(frozen=True)
class Request:
    """One line of the log."""

    n: int
    kind: str
    due: float
    sent: float
    done: float
    status: int | None
    release: str | None
    order: int | None
    error: str | None

    @property
    def failed(self) -> bool:
        """No answer, or another than 200, and 201 for an order that names its number."""
        if self.kind == "order":
            return self.status != 201 or self.order is None
        return self.status != 200

    @property
    def slow(self) -> bool:
        return self.done - self.due > SLOW

    @property
    def good(self) -> bool:
        return not self.failed and not self.slow


def parse(text: str) -> list[Request]:
    """The requests of a log, in the order they were due; an unfinished last line is left out."""
    whole = text[: text.rfind("\n") + 1]
    return sorted((Request(**json.loads(line)) for line in whole.splitlines()), key=lambda request: request.due)


def first_bad(requests: Iterable[Request], after: float) -> Request | None:
    """The first request that turned out slow or failed at a moment after *after*; it may have been due just before."""
    return next((r for r in requests if not r.good and r.done > after), None)


def restored(requests: list[Request], after: float, span: float = GREEN) -> float | None:
    """When the first *span* seconds began, not before *after*, in which every request due was good; None if never.

    A gap in the log is no proof: the span must hold requests from its beginning to its end.
    """
    start = last = None
    for request in requests:
        if request.due < after:
            continue
        if not request.good:
            start = None
        elif start is None or last is not None and request.due - last > 1.0:
            start = request.due
        last = request.due
        if start is not None and request.due - start >= span:
            return start
    return None


def orders(requests: Iterable[Request]) -> list[int]:
    """The numbers of all acknowledged orders."""
    return [r.order for r in requests if r.status == 201 and r.order is not None]

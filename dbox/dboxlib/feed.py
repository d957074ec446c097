# SPDX-License-Identifier: Apache-2.0
"""What the feeds share: a spool that is filled by one thread and delivered by another, for as long as the feed runs.

A feed confirms to its source what is durable in the spool; the D-Box may be away for any time meanwhile.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from dre.dbox import Record, Recorder
from dre.errors import DreError
from dre.evidence import Receipt

LINGER = 0.2  # seconds in which more records come together
Told = Callable[[Record, Receipt], None]
LONGEST = 30.0  # seconds between attempts while the D-Box is away


@contextlib.contextmanager
def delivering(prog: str, recorder: Recorder, last: float, told: Told | None = None) -> Iterator[threading.Event]:
    """Deliver in the background; set the event when something was recorded. At the end try for *last* seconds more.

    *told* is called for each record that has its receipt. Says on stderr when the D-Box went away or came back, and
    how many records wait at the end.
    """
    work, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_deliver, args=(prog, recorder, work, stop, told), daemon=True)
    work.set()  # what an earlier feed left
    thread.start()
    try:
        yield work
    finally:
        stop.set()
        work.set()
        thread.join(last)
        with contextlib.suppress(DreError):  # it was said, and the records wait
            recorder.drain(last, told)
        if left := recorder.pending():
            sys.stderr.write(f"{prog}: {left} records wait in {recorder.directory}\n")


def _deliver(prog: str, recorder: Recorder, work: threading.Event, stop: threading.Event, told: Told | None) -> None:
    pause, away = LINGER, ""
    while not stop.is_set():
        work.wait()
        stop.wait(pause)
        if stop.is_set():
            return
        work.clear()
        try:
            recorder.drain(LONGEST, told)
            if away:
                sys.stderr.write(f"{prog}: delivering again\n")
            pause, away = LINGER, ""
        except (DreError, OSError) as error:
            if str(error) != away:
                sys.stderr.write(f"{prog}: records wait: {error}\n")
            away, pause = str(error), min(pause * 2, LONGEST)
            work.set()

# SPDX-License-Identifier: Apache-2.0
"""What every server in front of the log needs: the application, over a sequencer and a database that it only reads."""

import contextlib
from collections.abc import Iterator

from dre.conf import Conf

from dboxlib import remote, store, wsgi


@contextlib.contextmanager
def application(conf: Conf) -> Iterator[wsgi.Application]:
    """The application of the settings. Raises MissingError while no sequencer answers."""
    log = remote.connect(conf)
    with contextlib.closing(log), contextlib.closing(store.reading(conf)) as reading:
        yield wsgi.make(conf, reading, log)

# SPDX-License-Identifier: Apache-2.0
"""What every server in front of the log needs: a sequencer that answers, and the application over it.

Interim: the sequencer is in this process.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from dre import event, trust
from dre.conf import Conf
from dre.errors import DreError, UsageError

from dboxlib import pki, places, rotation, wsgi
from dboxlib import store as stores
from dboxlib.sequencer import Sequencer
from dboxlib.signer import Signer, load_key


@contextlib.contextmanager
def sequencer(conf: Conf) -> Iterator[Any]:
    certs = conf.dbox_certs_dir
    try:
        note = load_key((certs / "note.key").read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{certs / 'note.key'}: no such file; dbox-init makes it") from None
    try:
        owner = pki.unpack_owner((certs / "owner.p12").read_bytes(), (certs / "owner.pass").read_bytes())
    except (FileNotFoundError, PermissionError):
        owner = None
    except ValueError as error:
        raise DreError(f"{certs / 'owner.p12'}: {error}") from None
    KEYS.update(note=note, owner=owner)
    yield


KEYS: dict[str, Any] = {}


@contextlib.contextmanager
def application(conf: Conf) -> Iterator[Any]:
    where = places.of(conf)
    store = stores.writing(conf)
    signer = Signer(store.origin, rotation.recover(where, store), KEYS["note"], KEYS["owner"])
    log = Sequencer(store, signer)

    def told(fingerprint: str) -> None:
        event.emit(conf, "dbox.key.rotated", event.host() + "/dbox", {"key": fingerprint, "log": store.origin}, 5)

    log.rotation = rotation.Rotation(where, store.box, signer, conf.dbox_key_period, told)
    authority = trust.certificates(store.certificate("owner").encode(), "owner")[0]
    log.start(trust.fingerprint(authority))
    try:
        log.log_clients()
        yield wsgi.make(conf, store, log)
    finally:
        log.stop()

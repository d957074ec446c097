# SPDX-License-Identifier: Apache-2.0
"""A log on three Galera nodes: one dies and nothing acknowledged is lost; sequencers at two nodes do not fork it.

Three real servers on this host's loopback, which takes a minute: DRE_FULL=1.
"""

import contextlib
import os
import pathlib
import shutil
import threading
import time

import dboxkit
import mariadbkit
import pytest
from test_dbox_storage import WRITER, open_log, reader

FULL = os.environ.get("DRE_FULL") == "1"
LIBRARY = "/usr/lib/galera/libgalera_smm.so"
pytestmark = [
    pytest.mark.skipif(not FULL, reason="three servers take a minute: DRE_FULL=1"),
    pytest.mark.skipif(not pathlib.Path(LIBRARY).exists(), reason="no galera-4"),
]


class Node(mariadbkit.Server):
    """A server of a cluster."""

    def __init__(self, number, ports, members):
        self.number, self.ports, self.members = number, ports, members
        super().__init__(dboxkit.place())

    def start(self, *more):
        port, ist, sst = self.ports
        provider = f"base_port={port};gmcast.listen_addr=tcp://127.0.0.1:{port};ist.recv_addr=127.0.0.1:{ist}"
        first = [] if self.members else ["--wsrep-new-cluster"]
        super().start(
            "--wsrep-on=ON",
            f"--wsrep-provider={LIBRARY}",
            f"--wsrep-provider-options={provider};gcache.size=32M;gcache.dir={self.path / 'data'}",
            f"--wsrep-cluster-address=gcomm://{','.join(self.members)}",
            "--wsrep-cluster-name=dbox-test",
            f"--wsrep-node-name=n{self.number}",
            f"--wsrep-node-address=127.0.0.1:{port}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address=127.0.0.1:{sst}",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            *first,
            *more,
        )
        deadline = time.monotonic() + 120
        while "Synced" not in self.sql("SHOW STATUS LIKE 'wsrep_local_state_comment'"):
            assert time.monotonic() < deadline, (self.path / "log").read_text()[-3000:]
            time.sleep(0.2)


@pytest.fixture
def cluster():
    mariadbkit.needed()
    for program in ("rsync", "wsrep_sst_rsync"):  # a node gets its first copy by them
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install mariadb-server galera-4 rsync")
    ports = [[dboxkit.free_port() for _ in range(3)] for _ in range(3)]
    nodes, members = [], []
    try:
        for number in range(3):
            nodes.append(Node(number, ports[number], list(members)))
            members.append(f"127.0.0.1:{ports[number][0]}")
        yield nodes
    finally:
        for node in nodes:
            node.stop(9)
            shutil.rmtree(node.path, ignore_errors=True)


def at(box, node, name):
    """The same D-Box, its database at another node, with a socket of its own."""
    made = dboxkit.Box.__new__(dboxkit.Box)
    made.__dict__.update(box.__dict__)
    made.conf = box.path / f"{name}.conf"
    text = box.conf.read_text().replace(f"{box.path}/run", f"{box.path}/{name}")
    made.conf.write_text(text.replace(box.home, node.url(box.server_name)))
    return made


def test_a_node_dies_and_a_second_sequencer_does_not_fork(cluster):
    from dre.errors import DreError

    first, second, third = cluster
    box = mariadbkit.box(first)
    box.home = first.url(box.server_name)
    acknowledged, ended = {}, []
    process, log = open_log(box)
    process2 = None
    try:

        def write():
            seq = 1
            with contextlib.suppress(DreError):
                while not ended:
                    acknowledged[seq] = log.submit(WRITER, "app", seq, [b"%d" % seq]).numbers[0]
                    seq += 1

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(2)
        third.stop(9)  # another node: writing goes on, after the others gave it up
        before = len(acknowledged)
        deadline = time.monotonic() + 60
        while len(acknowledged) < before + 50:
            assert time.monotonic() < deadline and thread.is_alive(), (before, len(acknowledged))
            time.sleep(0.1)
        # The named lock of the first node says nothing here: the epoch does.
        other = at(box, second, "other")
        process2, log2 = open_log(other)
        taken = max(acknowledged)
        deadline = time.monotonic() + 60
        while thread.is_alive():
            assert time.monotonic() < deadline, "the first one still writes"
            time.sleep(0.1)
        assert process.wait(60) == 4
        assert log2.submit(WRITER, "app", 10**6, [b"by the second"]).numbers
        log2.close()
        process2.terminate()
        assert process2.wait(60) == 0
        assert taken >= before + 50
        for node in (first, second):
            node.sql("SET GLOBAL wsrep_sync_wait = 1")
            with reader(at(box, node, f"look{node.number}")) as store:
                known = store.known(WRITER, "app", 1, 10**5)
                assert {seq: known[seq].number for seq in acknowledged} == acknowledged
                assert sum(1 for _ in store.walk()) == store.entries()
    finally:
        ended.append(True)
        for each in (process, process2):
            if each is not None:
                each.kill()
                each.wait()
        dboxkit.remove(box)

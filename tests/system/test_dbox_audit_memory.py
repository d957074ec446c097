# SPDX-License-Identifier: Apache-2.0
"""dbox-audit needs no more memory for a long log than for a short one. DRE_RECORDS is the length of the long one."""

import os
import subprocess
import sys
import threading

import dboxkit
import pytest
from test_dbox_storage import log_of

RECORDS = int(os.environ.get("DRE_RECORDS", "120000"))
SHORT = 20_000  # several pieces of what an audit reads at once
AT_ONCE = 5_000
MORE = 4 * 1024  # KiB: less than the leaf hashes alone of 100 000 entries take
# A small process between: what pytest has would count as its child's until that begins its program.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
box = dboxkit.box


def fill(log, writer, first, count):
    """Append *count* records of 256 octets; two writers keep the sequencer busy."""
    failed = []

    def work(letter, seq, left):
        try:
            while left > 0:
                octets = os.urandom(256 * min(left, AT_ONCE))
                parts = [octets[at : at + 256] for at in range(0, len(octets), 256)]
                log.submit(letter * 64, "bench", seq, parts)
                seq, left = seq + len(parts), left - len(parts)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(letter, first, count // 2)) for letter in writer]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def audited(box, size):
    """The most memory that an audit of the database had, in KiB, as the kernel tells."""
    argv = [dboxkit.program("dbox-audit"), "--config", box.conf, "--database", box.database, "--forget"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, argv)], env=dboxkit.environment(), capture_output=True, check=False
    )
    assert done.returncode == 0 and f"{size} entries" in done.stdout.decode(), done
    return int(done.stderr)


def test_a_long_log_takes_no_more_memory_than_a_short_one(box):
    if not dboxkit.is_root():
        pytest.skip("needs root: the sequencer becomes dbox")
    with log_of(box) as log:
        fill(log, "ab", 1, SHORT)
        size = log.newest()[0].size
    short = audited(box, size)
    with log_of(box) as log:
        fill(log, "ab", 1 + SHORT // 2, RECORDS - SHORT)
        size = log.newest()[0].size
    long = audited(box, size)
    print(f"{SHORT} records: {short} KiB; {RECORDS} records: {long} KiB", flush=True)
    assert size > RECORDS and long < short + MORE

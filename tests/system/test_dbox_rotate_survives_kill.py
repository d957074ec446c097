# SPDX-License-Identifier: Apache-2.0
"""dbox-rotate killed at any moment leaves one sign key in force, and the log goes on with it."""

import os

import dboxkit

box = dboxkit.box
KILLS = int(os.environ.get("DRE_KILLS", "2"))


def test_killed_at_any_moment_the_log_goes_on(box):
    receipts = {}
    for number in range(KILLS):
        seconds = 0.2 + 1.6 * number / max(1, KILLS - 1)
        # timeout(1) kills with SIGKILL; whether it was finished by then is part of the draw.
        box.run("dbox-rotate", before=["timeout", "-s", "KILL", f"{seconds:.2f}"])
        box.start()
        receipts[b"%d" % number] = box.put(b"%d" % number)
        box.stop()
        box.good("dbox-rotate", "--prepare")
        assert len(list(box.state.glob("sign.*"))) == 3  # the present key, and a whole pair for the next
    for octets, receipt in receipts.items():
        (box.path / "receipt").write_bytes(receipt)
        assert box.run("dbox-verify", box.path / "receipt", "-", stdin=octets).returncode == 0
    assert box.run("dbox-audit", "--database", box.database).returncode == 0

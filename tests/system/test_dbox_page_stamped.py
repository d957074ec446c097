# SPDX-License-Identifier: Apache-2.0
"""The page believes a time stamp (RFC 3161) under the CA of the settings, and no other."""

import dboxkit
import test_dbox_anchors
from browser import Browser

box, authority = dboxkit.box, test_dbox_anchors.authority


def anchored(browser):
    """What the page says of entry 0, and of the anchors of the box."""
    entry = browser.get("/ui/entries/0").words
    state = browser.get("/d_box_main.html").words
    return entry[entry.index("anchored ") :][:200], state[state.index("Anchors outside the box") :][:300]


def test_a_time_stamp_anchors(box, authority):
    url, path = authority
    port = dboxkit.free_port()
    page = {"DRE_DBOX_PAGE_LISTEN": f"127.0.0.1:{port}"}
    test_dbox_anchors.settings(box, **page, DRE_DBOX_TSA_URL=f"{url}/tsr", DRE_DBOX_TSA_CA=path / "ca.crt")
    box.start()
    browser = Browser(box, port, "reader")
    entry, state = anchored(browser)
    assert entry.startswith("anchored ? unverified") and "! too old no third party" in state
    box.good("dbox-witness", "--ask")
    entry, state = anchored(browser)
    assert entry.startswith("anchored ✓ verified time stamping authority 127.0.0.1 confirmed at 20")
    assert state.startswith("Anchors outside the box ✓ verified")
    box.stop()
    test_dbox_anchors.settings(box, DRE_DBOX_TSA_CA=box.certs / "root.pem")
    box.start()
    entry, state = anchored(browser)
    assert entry.startswith("anchored ? unverified") and "does not verify under" in entry
    assert "✓ verified" not in state

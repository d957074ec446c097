# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box in a real browser: its own check by WebCrypto, a tampered entry, phone and desk.

Pictures go to build/page/ to be looked at; those in docs/ are made by docs/screenshots.
"""

import base64
import contextlib
import shutil
import sqlite3
import time

import dboxkit
import pytest
from browser import PASSWORD
from conftest import ROOT
from dre import witness

EVENT = b'{"time":"2026-11-26T08:00:00.123Z","source":"/host:h7/app:web1","type":"app.cpu","sev":4,"data":{"cpu":%d}}'
HOSTILE = b"<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[2J"
WAIT = 60
# One letter of an answer is another one when it arrives.
LIE = """
    const [part, mark, distance] = arguments;
    window.honest = window.honest || window.load;
    window.load = async (address) => {
        const octets = await window.honest(address);
        const text = Array.from(octets, (octet) => String.fromCharCode(octet)).join("");
        const spot = mark ? text.indexOf(mark) + distance : (text.length + distance) % text.length;
        if (address.endsWith(part)) octets[spot] = octets[spot] === 65 ? 66 : 65;
        return octets;
    };
"""
SIGNATURE = "—".encode().decode("latin-1")  # begins each signature line of a tree head


def chromium(width, dark=False, script=True):
    """A headless Chromium of that width, which takes the test's certificates for good."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="python3-selenium is not installed")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    options.add_argument("--ignore-certificate-errors")
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not script:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    made = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(shutil.which("chromedriver")))
    made.set_page_load_timeout(30)
    size = {"width": width, "height": 844 if width < 500 else 900, "deviceScaleFactor": 1, "mobile": width < 500}
    made.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    return made


class Page:
    """The page in a browser, with somebody logged in."""

    def __init__(self, port, width=1280, account="carol", **how):
        self.base, self.driver = f"https://localhost:{port}", chromium(width, **how)
        try:
            self.log_in(account)
        except BaseException:
            self.driver.quit()
            raise

    def log_in(self, account):
        self.open("/d_box_main.html")
        self.one("#name").send_keys(account)
        self.one("#password").send_keys(PASSWORD)
        self.one("main button").click()
        self.until(lambda: self.driver.current_url.endswith("/d_box_main.html"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.driver.quit()

    def open(self, path):
        """Load a page; again where Chromium gave up because somebody else's bridge or app came or went meanwhile."""
        for _ in range(20):
            self.driver.get(self.base + path)
            if "ERR_NETWORK_CHANGED" not in self.driver.page_source:
                return

    def one(self, selector, seconds=10):
        """The first of what *selector* finds; the old page may have gone before the new one has come."""
        deadline = time.monotonic() + seconds
        while not (found := self.driver.find_elements("css selector", selector)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found, f"no {selector} at {self.driver.current_url}: {self.driver.title}: {self.words[:1000]}"
        return found[0]

    @property
    def words(self):
        return self.one("body").text

    def until(self, true):
        """Wait; while a page gives way to the next there is no telling."""
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + WAIT
        while True:
            with contextlib.suppress(WebDriverException):
                if true():
                    return
            assert time.monotonic() < deadline, self.words
            time.sleep(0.05)

    def checks(self):
        """What the browser's own check says of each of its four questions."""
        items = self.driver.find_elements("css selector", "#verify [data-check]")
        return {one.get_attribute("data-check"): one.get_attribute("class") for one in items}

    def wait(self, wanted):
        self.until(lambda: self.checks() == wanted)

    def picture(self, name):
        """A picture of the whole page; nothing may be wider than the screen."""
        wide, inner = self.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= inner, f"{name}: {wide} wide on a screen of {inner}"
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        place = ROOT / "build/page"
        place.mkdir(parents=True, exist_ok=True)
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
        (place / f"{name}.png").write_bytes(base64.b64decode(data))

    def complaints(self):
        """What the browser had to say, such as a breach of the policy."""
        return [one["message"] for one in self.driver.get_log("browser") if "favicon" not in one["message"]]


def made():
    """A D-Box with its page, accounts, and something in it."""
    port = dboxkit.free_port()
    streams = "batch:quota=5K app:quota=1M shop:erasable=yes"
    box = dboxkit.copy(DRE_DBOX_PAGE_LISTEN=f"127.0.0.1:{port}", DRE_DBOX_STREAMS=streams)
    for name, role in (("alice", "admin"), ("carol", "reader")):
        box.good("dbox-user", name, "--role", role, stdin=PASSWORD.encode() + b"\n")
    key = witness.make_key("witness.example/w1")
    (box.path / "witnesses").write_text(f"{key.public.format()}\n")
    with box.conf.open("a") as settings:
        settings.write(f'DRE_DBOX_WITNESSES="{box.path}/witnesses"\n')
    box.start()
    box.page = port
    box.good("dbox-put", "--batch", "--stream", "app", stdin=b"\n".join(EVENT % at for at in range(40)))
    note = box.good("dbox-get", "--head").decode()
    dboxkit.anchor(box, note, key.cosign(note[: note.rindex("\n\n") + 1], int(time.time())))
    box.put(b"x" * 4500, stream="batch")
    box.put(HOSTILE, stream="shop")
    with sqlite3.connect(box.database) as database:
        box.hostile = database.execute("SELECT max(number) FROM entry").fetchone()[0]
    return box


@pytest.fixture(scope="module")
def site():
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    box = made()
    yield box
    dboxkit.remove(box)


def test_browser_proves_an_entry_itself(site):
    with Page(site.page, 390, dark=True) as page:
        page.picture("phone-state")
        page.open("/ui/search")
        page.picture("phone-search")
        page.open(f"/ui/entries/{site.hostile}")
        assert page.checks() == dict.fromkeys(("octets", "included", "signed", "chain"), "open")
        page.one("#check").click()
        page.wait({"octets": "good", "included": "good", "signed": "good", "chain": "open"})
        page.one("#root").send_keys(str(site.certs / "root.pem"))
        page.wait(dict.fromkeys(("octets", "included", "signed", "chain"), "good"))
        assert "D-Box sign key ← D-Box owner ← D-Box manufacturer ← DEOS centre ← D-RE root" in page.words
        assert "“D-Box note key” (Ed25519)" in page.words
        page.picture("phone-entry")
        page.one("#root").send_keys(str(site.certs / "client-ca.pem"))
        page.wait({"octets": "good", "included": "good", "signed": "good", "chain": "bad"})
        assert "owned" not in page.driver.title and "<script>document.title" in page.words
        assert not page.complaints()


def test_browser_catches_a_box_that_lies(site):
    """The server's answers are changed on their way: whatever the page says, the browser's own check is red."""
    with Page(site.page) as page:
        page.open(f"/ui/entries/{site.hostile}")
        page.one("#check").click()
        page.wait({"octets": "good", "included": "good", "signed": "good", "chain": "open"})
        for part, mark, distance, bad in (
            ("octets", "", 3, "octets"),
            ("proof", "extra ", 60, "included"),  # a letter of the header
            ("proof", "index ", 12, "included"),  # of the path
            ("proof", "time ", 6, "signed"),  # of the tree head
            ("proof", SIGNATURE, 80, "signed"),  # of the RSA signature
            ("chain.pem", "CERTIFICATE", 700, "signed"),
            ("proof", "", -20, "signed"),  # of the Ed25519 signature
            ("nowhere", "", 0, ""),  # the control
        ):
            page.driver.execute_script(LIE, part, mark, distance)
            page.one("#check").click()
            page.until(lambda: page.one('#verify [data-check="chain"] p').text or "no receipt" in page.words)
            found = {what for what, state in page.checks().items() if state == "bad"} - {"chain"}
            assert bad in found if bad else not found, (part, mark, page.words)


def test_tampered_entry_is_red_in_both(site):
    number = site.hostile - 1
    with Page(site.page) as page:
        page.picture("desk-state")
        page.open(f"/ui/entries/{site.hostile - 5}")
        page.one("#check").click()
        page.wait({"octets": "good", "included": "good", "signed": "good", "chain": "open"})
        page.picture("desk-entry")
        with sqlite3.connect(site.database) as database:
            database.execute("DROP TRIGGER entry_erased")
            database.execute("UPDATE entry SET octets = ? WHERE number = ?", (b"y" * 4500, number))
        database.close()
        page.open(f"/ui/entries/{number}")
        assert "✗ This entry does not verify." in page.words
        assert "included: entry" in page.words and "octets do not match the digest" in page.words
        page.picture("desk-tampered")
        page.open("/d_box_main.html")
        assert "The log was tampered with" in page.words
    with Page(site.page, account="alice", dark=True, script=False) as page:
        page.open(f"/ui/entries/{site.hostile}")
        assert "This needs JavaScript" in page.words
        page.open("/ui/audit")
        page.one('form[action="/ui/audit/run"] button').click()
        page.until(lambda: "first bad entry" in page.words)  # the page loads itself again while an audit runs
        assert f"first bad entry: {number}" in page.words
        page.picture("desk-audit")
        page.open("/ui/admin")
        page.picture("desk-admin")

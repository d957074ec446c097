# SPDX-License-Identifier: Apache-2.0
"""The page of the monitor behind a real Apache and mod_wsgi, with a real dre-monitor whose rules it changes, and in a
real browser on a phone and at a desk."""

import http.client
import http.cookies
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.parse

import dboxfront
import dboxkit
import pagekit
import pytest
from conftest import ROOT, environment
from dre import event
from pagekit import PASSWORD, RULE
from test_dbox_page import Page
from test_monitor_recognises_overload import Monitor, until
from test_monitor_rules_reload import RULE as TELLS
from test_monitor_rules_reload import stage

sys.path.insert(0, str(ROOT / "sec-monitor"))

NEEDED = ("mpm_event", "authz_core", "env", "setenvif", "socache_shmcb", "ssl", "wsgi", "headers", "reqtimeout")
WATCHED = {"id": "memory", "watch": "host-memory", "above": 0, "clear": 0, "for": 0, "every": 0.2}


class Web(pagekit.Site):
    """An Apache as the package configures it, on a port of its own, with the certificates of a D-Box."""

    def __init__(self):
        self.box = dboxkit.copy()  # its PKI; it is never started
        self.port, self.httpd = dboxkit.free_port(), None
        pathlib.Path(self.box.path / "run").mkdir(mode=0o755, exist_ok=True)
        super().__init__(self.box.path, str(self.box.conf))
        self.command("person", "kim", "--role", "approver", "--certificate", self.box.certs / "clients/writer.crt")
        self.start_apache()

    def start_apache(self):
        place = self.place / "web"
        for part in ("sec-monitor/apache", "sec-monitor/monitorlib", "dre-core/dre"):
            shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
        path = f"{place}/sec-monitor:{place}/dre-core"
        if os.environ.get("DRE_TEST_INSTALLED") == "1":
            path = "/usr/share/sec-monitor"
        defined = {
            "APACHE_RUN_DIR": place,
            "APACHE_LOG_DIR": place,
            "DRE_PAGE_PORT": self.port,
            "DRE_PAGE_CERTS": self.box.certs,
            "DRE_PAGE_CONFIG": self.config,
            "DRE_PAGE_WSGI": place / "sec-monitor/apache",
            "DRE_PAGE_PATH": path,
        }
        lines = [f"LoadModule {name}_module {dboxfront.MODULES}/mod_{name}.so" for name in NEEDED]
        lines += [f"Define {name} {value}" for name, value in defined.items()]
        lines += [f'ServerRoot "{place}"', "ServerName localhost", "User www-data", "Group www-data"]
        lines += [f'PidFile "{place}/pid"', f'DefaultRuntimeDir "{place}"', "ErrorLog error.log", "LogLevel warn"]
        lines += [f'Include "{place}/sec-monitor/apache/dre-page.conf"', ""]
        (place / "apache2.conf").write_text("\n".join(lines))
        argv = ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", place / "apache2.conf"]
        self.httpd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment())
        dboxfront.wait_for(self.port, self.httpd, self.said)

    def said(self):
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in (self.place / "web").glob("*.log"))

    def end(self):
        if self.httpd is not None:
            self.httpd.terminate()
            self.httpd.wait(20)
        super().end()
        dboxkit.remove(self.box)

    def browser(self, name="", certificate=""):
        made = Remote(self, certificate)
        return made.login(name) if name else made


class Remote(pagekit.Browser):
    """The browser of pagekit, by HTTPS."""

    def __init__(self, web, certificate):
        self.web, self.context, self.cookies = web, web.box.tls(certificate), {}

    def ask(self, method, path, data=None, headers=None):
        headers = {**(headers or {}), "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        connection = http.client.HTTPSConnection("localhost", self.web.port, timeout=100, context=self.context)
        body = None
        if data is not None:
            body, headers["Content-Type"] = urllib.parse.urlencode(data), "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body, headers)
            got = connection.getresponse()
            text = got.read().decode()
        finally:
            connection.close()
        for line in got.headers.get_all("Set-Cookie") or ():
            for name, morsel in http.cookies.SimpleCookie(line).items():
                self.cookies[name] = morsel.value
                if morsel["max-age"] == "0":
                    del self.cookies[name]
        self.answer = types.SimpleNamespace(
            headers=got.headers,
            status_code=got.status,
            get_data=lambda as_text: text,
            request=types.SimpleNamespace(path=path),
        )
        assert got.headers["Content-Security-Policy"].startswith(pagekit.POLICY), (got.status, text[:500])
        return got.status


@pytest.fixture(scope="module")
def web():
    if dboxfront.missing() or pagekit.cannot():
        pytest.skip(dboxfront.missing() or pagekit.cannot())
    try:
        pwd.getpwnam("dre-page")
    except KeyError:
        pytest.skip("no user dre-page: it comes with the installed package")
    made = Web()
    yield made
    made.end()


@pytest.fixture
def monitor(web):
    """A monitor that runs, with the rules of the package and a sampled memory."""
    shutil.rmtree(web.rules)
    made = Monitor(web.config, web.place)
    made.watch(WATCHED)
    made.start()
    yield made
    made.stop()


def approved(web, name, text, by="bob"):
    """Have a rule file in force by two people; what the second one's browser shows then."""
    identity = web.browser("ann").propose(name, text)
    second, path = web.browser(by), f"/rules/proposals/{identity}"
    second.send(path, path, do="approve")
    return second


def test_rules_that_two_people_agreed_on_recognise_and_those_that_kill_go_back(web, monitor):
    before = stage(monitor)
    assert approved(web, "lab.sec", TELLS.replace("TOLD", "new")).answer.status_code == 303
    assert stage(monitor) not in (before, None)
    event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": 1})
    until(lambda: monitor.events("lab.new"))

    before, shown = stage(monitor), []
    approving = threading.Thread(
        target=lambda: shown.append(approved(web, "lab.sec", TELLS.replace("TOLD", "worse"))), daemon=True
    )
    approving.start()
    pid = until(lambda: stage(monitor) not in (before, None) and stage(monitor))
    os.kill(pid, signal.SIGKILL)
    approving.join(90)
    assert shown[0].answer.status_code == 409 and "the rules before are in force again" in shown[0].words
    assert "lab.new" in (web.rules / "lab.sec").read_text()
    until(lambda: stage(monitor) not in (pid, None))
    event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": 2})
    until(lambda: {made["data"]["n"] for made in monitor.events("lab.new")} == {1, 2})
    history = [json.loads(line) for line in web.command("history", "--json").splitlines()]
    assert [(one["how"], one["by"], one["via"]) for one in history[-3:]] == [
        ("approve", "bob", "account"),
        ("approve", "bob", "account"),
        ("back", "bob", "account"),
    ]


def test_what_is_sampled_is_shown(web, monitor):
    eve = web.browser("eve")
    until(lambda: eve.get("/watch") == 200 and "memory ✗ raised" in eve.words, 30)
    assert eve.get("/watch/web-overload/memory?span=14d") == 200 and "raised" in eve.words
    until(
        lambda: eve.get("/watch/web-overload/memory") == 200 and '<polyline class="mean"' in eve.answer.get_data(True)
    )
    assert eve.get("/watch/web-overload/other") == 404 and eve.get("/watch/web-overload/memory?span=1y") == 400


def test_a_certificate_is_known_and_a_stranger_or_a_header_is_not(web):
    kim = web.browser(certificate="writer")
    assert kim.get("/rules") == 200 and "kim approver" in kim.words
    assert web.browser(certificate="reader").get("/rules") == 303
    known = {"SSL_CLIENT_VERIFY": "SUCCESS", "SSL_CLIENT_CERT": (web.box.certs / "clients/writer.crt").read_text()}
    headers = {name: urllib.parse.quote(value) for name, value in known.items()}
    headers |= {name.replace("_", "-"): value for name, value in headers.items()}
    assert web.browser().ask("GET", "/rules", headers=headers) == 303


def test_who_runs_the_page_may_do_nothing(web):
    web.browser("eve")
    user = pwd.getpwnam("dre-page")
    listed = subprocess.run(["ps", "-o", "args=", "-u", str(user.pw_uid)], capture_output=True, text=True, check=True)
    assert "dre-page" in listed.stdout, "mod_wsgi's processes are dre-page's"
    script = "import os, sys\nfor path in sys.argv[1:]: print(os.access(path, os.W_OK), os.access(path, os.R_OK))"
    state = web.place / "state"
    kept = state / "rules-page"
    closed = [
        web.rules,
        *web.rules.iterdir(),
        state / "rules",
        state / "watch",
        kept,
        kept / "ui.sqlite",
        kept / "secret",
    ]
    argv = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "/usr/bin/python3", "-c"]
    done = subprocess.run([*argv, script, *closed], capture_output=True, text=True, check=True, env=environment())
    rows = [line.split() for line in done.stdout.splitlines()]
    assert all(writes == "False" for writes, _ in rows)
    assert [reads for _, reads in rows[-3:]] == ["False"] * 3 and rows[0][1] == "True"


def test_nothing_is_told_in_the_clear(web):
    connection = http.client.HTTPConnection("localhost", web.port, timeout=10)
    connection.request("GET", "/rules")
    assert connection.getresponse().status == 400


def filled(web):
    """A day of two monitors, a proposal, and some history: something to look at."""
    from monitorlib import trend
    from monitorlib.crossing import Monitor as Watched
    from monitorlib.crossing import Sample

    made = trend.Trends(web.place / "state/watch/trend", lambda call, *fields: call(*fields))
    slow = Watched("web-overload", "slow", "http", None, "http://10.231.0.11/", 0.3, 0.2, 0.0, 0.2)
    busy = Watched("web-overload", "busy", "cpu", "web1", None, 90.0, 70.0, 3.0, 0.5)
    disk = Watched("house", "disk", "disk", None, None, 80.0, 75.0, 0.0, 5.0, path="/var")
    now, up = time.time(), False
    for back in range(3600 * 20, 10, -5):
        late = 900 < back < 1400 or 30000 < back < 33000
        value = 0.04 + 0.02 * ((back // 5) % 7) / 7 + (0.9 if late else 0) * ((back // 5) % 3 + 1) / 3
        bad = "no answer" if late and back % 70 == 0 else ""
        made.add(slow, Sample(value, bad), now - back)
        if late != up:
            made.crossed(slow, "raised" if late else "cleared", value, now - back)
            up = late
        if not 5000 < back < 8000:
            made.add(busy, Sample(30 + 25 * ((back // 600) % 3) + (back // 5) % 11), now - back)
    for back in range(86400 * 14, 10, -300):
        made.add(disk, Sample(40 + (1209600 - back) / 40000), now - back)
    made.end()
    shop = (ROOT / "sec-monitor/rules/shop.sec").read_text()
    approved(web, "shop.sec", shop + "\n# twice is agreed, too\n")
    ann = web.browser("ann")
    ann.propose("shop.sec", shop.replace("desc=", "desc=now ", 1), note="earlier, as agreed")
    lines = (event.Event(event.stamp(), "/host:h/app:web1", f"alpha.{n}", 6, {}, {"id": f"i{n}"}) for n in (1, 2))
    (web.place / "recorded").write_bytes(b"".join(map(event.format, lines)))


class Pictured(Page):
    """The page in Chromium, with somebody logged in."""

    def picture(self, name):
        super().picture(name)
        wide = self.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= self.width, f"{name}: {wide} wide on a screen of {self.width}"

    def __init__(self, port, width, **how):
        self.width = width
        super().__init__(port, width, **how)

    def log_in(self, account):
        self.open("/login")
        self.one("#name").send_keys(account)
        self.one("#password").send_keys(PASSWORD)
        self.one("main button").click()
        self.until(lambda: self.driver.current_url.endswith("/rules"))


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_in_a_browser_on_a_phone_and_at_a_desk(web, width, dark):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    if not (web.place / "state/watch/trend/house.disk.json").exists():
        if not (web.rules / "a.sec").exists():
            (web.rules / "a.sec").write_text(RULE.format("alpha"))
        filled(web)
    size = "phone" if width < 500 else "desk"
    with Pictured(web.port, width, account="bob", dark=dark, script=False) as page:
        page.picture(f"monitor-{size}-rules")
        page.one("main a[href^='/rules/proposals/']").click()
        page.one("button[value=test]").click()
        page.until(lambda: "On recorded events" in page.words)
        page.picture(f"monitor-{size}-proposal")
        page.open("/rules/edit?file=a.sec")
        page.one("#text1").clear()
        page.one("#text1").send_keys(RULE.format("alph").replace("write", "shellcmd"))
        page.one("button[value=check]").click()
        page.until(lambda: "Refused" in page.words)
        page.picture(f"monitor-{size}-refused")
        page.one("#text1").clear()
        page.one("#text1").send_keys(RULE.format("alph").replace(" x\n", ' {"what":"alph","n":"$0"}\n'))
        page.one("#events").send_keys(str(web.place / "recorded"))
        page.one("button[value=test]").click()
        page.until(lambda: "Only with these rules" in page.words)
        page.picture(f"monitor-{size}-draft")
        for path, name in (
            ("/rules/history", "history"),
            ("/rules/history/2", "version"),
            ("/rules/files/shop.sec", "file"),
            ("/watch", "watched"),
            ("/watch/web-overload/slow", "slow"),
            ("/watch/web-overload/busy?span=1d", "busy"),
            ("/watch/house/disk?span=14d", "disk"),
            ("/account", "account"),
            ("/rules/none", "error"),
        ):
            page.open(path)
            page.picture(f"monitor-{size}-{name}")
        assert not [one for one in page.complaints() if not re.search("status of (404|422)", one)]

# SPDX-License-Identifier: Apache-2.0
"""What a crash leads to: pauses that double, a count that begins anew after a good run, a status not trusted."""

import pytest
from dre import app, keeping, spec
from dre.conf import Conf
from dre.errors import UsageError


@pytest.fixture
def web1(tmp_path, monkeypatch):
    conf = Conf(core_state_dir=tmp_path, app_lxc_path=tmp_path / "lxc", core_run_dir=tmp_path / "run")
    made = app.App(conf, "web1")
    made.home.mkdir(parents=True)
    made.directory.mkdir(parents=True)
    (made.home / "app.json").write_text(spec.Spec("web1", "host", "x", restart="on-failure:3").to_json())
    monkeypatch.setattr(app.App, "state", lambda self: "crashed")
    monkeypatch.setattr(app.App, "emit", lambda self, what, sev=6, **data: EVENTS.append((what, sev, data)))
    EVENTS.clear()
    return made


EVENTS = []


def say(text):
    assert text.startswith("web1: ")


def crash(web1, crashes, ran):
    """The app, after so many crashes before, has run for *ran* seconds and crashes; how long it pauses then."""
    web1.remember({"wanted": True, "kept": True, "crashes": crashes, "init": [1, 0]})
    keeping._ran = lambda record: ran
    return keeping.crash(web1, say)


@pytest.fixture(autouse=True)
def _ran_is_put_back():
    original = keeping._ran
    yield
    keeping._ran = original


def test_pauses_double_up_to_30_seconds():
    assert [keeping.pause(number) for number in range(1, 9)] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_crashes_are_counted_until_it_has_run_well(web1):
    assert [crash(web1, number, 5.0) for number in range(3)] == [1, 2, 4]
    assert crash(web1, 2, 61.0) == 1
    assert crash(web1, 3, None) is None
    assert EVENTS[-2:] == [("crashed", 3, {"status": None, "crashes": 4}), ("gave-up", 2, {"crashes": 4})]


def test_a_crash_is_told_once(web1):
    assert crash(web1, 0, 5.0) == 1
    assert keeping.crash(web1, say) == 1
    assert [what for what, _, _ in EVENTS] == ["crashed"]


def test_an_app_without_a_policy_is_only_told(web1):
    web1.remember({"wanted": True})
    assert keeping.crash(web1, say) is None
    assert EVENTS == [("crashed", 3, {"status": None, "crashes": 1})]


@pytest.mark.parametrize(
    ("octets", "status"),
    [(b"0\n", 0), (b"137\n", 137), (b"", None), (b"256\n", None), (b"-1\n", None), (b"\xff\xfe", None), (b"1e9", None)],
)
def test_the_status_is_a_number_or_nothing(web1, octets, status):
    web1.status.write_bytes(octets)
    assert keeping._status(web1) == status


def test_a_status_file_of_any_size_is_no_matter(web1):
    with web1.status.open("wb") as stream:
        stream.truncate(1 << 40)
    assert keeping._status(web1) is None


@pytest.mark.parametrize("word", ["", "always", "on-failure", "on-failure:0", "on-failure:-1", "on-failure:3\n"])
def test_policy_refused(word):
    with pytest.raises(UsageError, match="expected no, or on-failure:N"):
        spec.restart(word)


def test_an_init_that_outlives_its_monitor_a_little_is_looked_at_again(web1, monkeypatch):
    states = iter(["running", "running", "crashed"])
    monkeypatch.setattr(app.App, "state", lambda self: next(states, "crashed"))
    web1.remember({"wanted": True, "kept": True, "monitor": [1 << 22, 1], "init": [1 << 22, 1]})
    keeper = keeping.Keeper(web1.conf, say)
    keeper._read_records()
    for _ in range(3):
        assert list(keeper.due) == ["web1"]
        keeper.due.clear()
        keeper._attend("web1")
    assert [what for what, _, _ in EVENTS] == ["crashed"]
    assert "web1" in keeper.planned

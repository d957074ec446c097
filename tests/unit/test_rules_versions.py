# SPDX-License-Identifier: Apache-2.0
"""Rules as versions: in force is one whole set or the other, whoever is killed, and every switch is on record."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre import conf  # noqa: E402
from dre.errors import DreError, NotFoundError, NotPermittedError  # noqa: E402
from dre.spool import Spool  # noqa: E402
from monitorlib import versions  # noqa: E402

ONE = {"a.sec": b"one\n", "b.sec": b"two\n"}
TWO = {"a.sec": b"three\n", "c.sec": b"four\n"}


@pytest.fixture
def made(settings, tmp_path):
    """Settings, and a directory of rules with something else in it."""
    place = tmp_path / "etc/rules.d"
    place.mkdir(parents=True)
    (place / "README").write_text("not a rule\n")
    (place / "b.sec").write_bytes(ONE["b.sec"])
    return conf.load(settings())


def here(made):
    """The rule files, read by nobody of ours."""
    return {path.name: path.read_bytes() for path in (made.core_etc_dir / "rules.d").glob("*.sec")}


def recorded(made):
    """What waits for the D-Box."""
    spool = Spool(made.core_state_dir / "spool/dbox/monitor")
    return [json.loads(record.octets) for record in spool.pending()]


def test_a_version_is_what_sha256sum_says(made):
    versions.switch(made, ONE, "install")
    (place,) = (made.core_state_dir / "rules/versions").glob(versions.digest(ONE))
    argv = ["sh", "-c", "LC_ALL=C; sha256sum *.sec | sha256sum | cut -d' ' -f1"]
    said = subprocess.run(argv, cwd=place, capture_output=True, check=True).stdout
    assert said.decode().strip() == place.name


def test_each_switch_is_whole_numbered_and_recorded(made):
    (made.core_etc_dir / "rules.d/b.sec").chmod(0o640)
    first = versions.switch(made, ONE, "install", "why")
    assert (first.number, first.how, first.note, here(made)) == (2, "install", "why", ONE)  # 1 is what was found
    assert versions.switch(made, ONE, "install") is None
    versions.switch(made, TWO, "install")
    assert here(made) == TWO
    assert sorted(os.listdir(made.core_etc_dir)) == ["rules.d"]
    assert (made.core_etc_dir / "rules.d/README").read_text() == "not a rule\n"
    found, texts = versions.find(made, None)
    assert (found.number, texts) == (2, ONE)
    assert versions.find(made, 1)[1] == {"b.sec": b"two\n"}
    with pytest.raises(NotFoundError):
        versions.find(made, 9)
    done = versions.history(made)
    assert [one.how for one in done] == ["hand", "install", "install"]
    assert [row["version"] for row in recorded(made)] == [one.version for one in done]
    assert recorded(made)[1]["by"] == versions.person() and set(recorded(made)[1]["files"]) == set(ONE)


def test_what_is_changed_by_hand_is_a_version_once(made):
    versions.switch(made, ONE, "install")
    (made.core_etc_dir / "rules.d/a.sec").write_bytes(b"by hand\n")
    for _ in range(2):
        assert [one.how for one in versions.history(made)] == ["hand", "install", "hand"]
    assert versions.find(made, 3)[1] == {**ONE, "a.sec": b"by hand\n"}
    assert versions.find(made, None)[1] == ONE


def test_a_kept_version_that_was_changed_is_not_taken(made):
    versions.switch(made, ONE, "install")
    versions.switch(made, TWO, "install")
    (made.core_state_dir / "rules/versions" / versions.digest(ONE) / "a.sec").write_bytes(b"other\n")
    with pytest.raises(DreError, match="not what its name says"):
        versions.find(made, None)


def test_what_came_into_force_meanwhile_is_not_undone_unseen(made):
    base = versions.digest(here(made))
    versions.switch(made, ONE, "install", base=base)
    with pytest.raises(DreError, match="meanwhile"):
        versions.switch(made, TWO, "install", base=base)
    assert here(made) == ONE


def test_a_mode_stays(made):
    (made.core_etc_dir / "rules.d/b.sec").chmod(0o640)
    (made.core_etc_dir / "rules.d").chmod(0o750)
    versions.switch(made, ONE, "install")
    modes = [(made.core_etc_dir / "rules.d" / name).stat().st_mode & 0o777 for name in ("b.sec", "a.sec", ".")]
    assert modes == [0o640, 0o644, 0o750]


def test_a_second_person_is_another_one(made, monkeypatch):
    monkeypatch.setattr(versions, "person", lambda: "ann")
    versions.switch(made, ONE, "install")
    first, second = versions.propose(made, TWO, "a"), versions.propose(made, {"a.sec": b"five\n"}, "b")
    assert [one.id for one in versions.proposals(made)] == [first.id, second.id]
    with pytest.raises(NotPermittedError, match="ann proposed it"):
        versions.may_approve(made, first)
    monkeypatch.setattr(versions, "person", lambda: "bob")
    versions.may_approve(made, first)
    versions.switch(made, versions.proposed(made, first.id)[1], "approve")
    with pytest.raises(DreError, match="propose it anew"):
        versions.may_approve(made, second)
    (made.core_state_dir / "rules/proposed" / first.id / "a.sec").write_bytes(b"smuggled\n")
    with pytest.raises(DreError, match="not what was proposed"):
        versions.proposed(made, first.id)
    versions.drop(made, second.id)
    for identity in (second.id, "../versions", "", "A" * 12):
        with pytest.raises(NotFoundError):
            versions.proposed(made, identity)


def test_killed_while_it_drops_a_proposal_there_is_no_half_of_one(made):
    dropped, stays = versions.propose(made, ONE, "a"), versions.propose(made, TWO, "b")
    child = os.fork()
    if not child:
        versions.shutil.rmtree = lambda place, **_: (place / "proposal.json").unlink() or os._exit(9)
        versions.drop(made, dropped.id)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [one.id for one in versions.proposals(made)] == [stays.id]
    with pytest.raises(NotFoundError):
        versions.drop(made, dropped.id)
    versions.history(made)
    assert os.listdir(made.core_state_dir / "rules/proposed") == [stays.id]


def test_killed_at_any_moment_all_of_one_set_is_there(made):
    versions.switch(made, ONE, "install")
    for _ in range(int(os.environ.get("DRE_KILLS", "20"))):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for texts in (TWO, ONE):
                        versions.switch(made, texts, "install")
            finally:
                os._exit(1)
        time.sleep(random.uniform(0, 0.1))  # the moment is what is tested
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert here(made) in (ONE, TWO)
        assert (made.core_etc_dir / "rules.d/README").exists()
        done = versions.history(made)
        assert done[-1].version == versions.digest(here(made))
        assert [one.number for one in done] == list(range(1, len(done) + 1))
        assert {one.how for one in done[1:]} == {"install"}  # none is taken for a change by hand
        assert [row["id"] for row in recorded(made)] == [one.id for one in done]
        assert os.listdir(made.core_etc_dir) == ["rules.d"]


def test_whom_the_page_knows_is_on_record(made):
    ann, bob = versions.Person("ann", "account"), versions.Person("bob", "certificate ab12")
    proposal = versions.propose(made, ONE, "why", by=ann)
    assert (proposal.by, proposal.via) == ("ann", "account")
    with pytest.raises(NotPermittedError):
        versions.may_approve(made, proposal, versions.Person("ann", "certificate cd34"))
    versions.may_approve(made, proposal, bob)
    versions.switch(made, ONE, "approve", by=bob)
    assert (recorded(made)[-1]["by"], recorded(made)[-1]["via"]) == ("bob", "certificate ab12")
    with pytest.raises(DreError, match="meanwhile"):
        versions.propose(made, TWO, "", base=proposal.base, by=ann)


def test_looking_at_the_history_writes_nothing(made):
    versions.switch(made, ONE, "install")
    (made.core_etc_dir / "rules.d/a.sec").write_bytes(b"by hand\n")
    assert len(versions.seen(made)) == 2
    assert len(versions.history(made)) == 3 == len(versions.seen(made))

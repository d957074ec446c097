# SPDX-License-Identifier: Apache-2.0
"""No event is proven unless everything it rests on is in the intake's spool and proven there."""

import pathlib
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dre import conf, event  # noqa: E402
from dscriptlib import trust  # noqa: E402

TIME = "2026-11-23T08:00:00.123Z"


def made(type="shop.overload", data=None, **optional):
    return event.Event(TIME, "/host:h", type, 5, data or {}, optional)


@pytest.fixture
def spooled(tmp_path):
    settings = conf.Conf(core_state_dir=tmp_path)
    directory = tmp_path / "spool" / "ingest"
    directory.mkdir(parents=True)
    lines = [
        made("shop.release", id="good"),
        made("watch.raised", {"id": "slow"}, id="raised"),
        made("shop.release", id="told", claimed=True),
        made("x.y", {"ids": "good,told"}, id="mixed"),
        made("x.y", {"ids": ["good", "raised"]}, id="clean"),
        made("x.y", {"ids": "loop"}, id="loop"),
        made("x.y", {"ids": ",".join(f"n{n}" for n in range(40))}, id="many"),
        *(made("x.y", id=f"n{n}") for n in range(40)),
    ]
    (directory / "00000000000000000000.jsonl").write_bytes(b"".join(event.format(line) for line in lines))
    return settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (made("shop.release", id="good"), None),
        (made(data={"ids": "good,raised"}), None),
        (made(data={"ids": " good , raised"}), None),
        (made(data={"ids": "clean"}), None),
        (made(data={"ids": "loop"}), None),
        (made("shop.release", id="good", claimed=True), "it is claimed"),
        (made(data={"ids": "good,told"}), "event told is claimed"),
        (made(data={"ids": "mixed"}), "event told is claimed"),
        (made(data={"ids": "good,unknown"}), "'unknown' is not in the intake's spool"),
        (made(data={"ids": "slow"}), "'slow' is not in"),  # data.id of another event is not an event id
        (made(data={"ids": 'x"\n'}), "is not in"),
        (made(data={"ids": "many"}), "more than 16"),
        (made(), "names no event id"),
        (made(data={"ids": ""}), "names no event id"),
        (made(data={"ids": {"good": 1}}), "names no event id"),
        (made("shop.overload", id="good"), "event good is another one"),
    ],
)
def test_doubt(spooled, given, words):
    spool = trust.Spool(spooled.core_state_dir / "spool" / "ingest")
    for doubt in (trust.doubt(spooled, given), trust.doubt(spooled, given, spool.find)):
        assert (doubt is None) if words is None else words in doubt


def test_without_a_spool_nothing_is_proven(tmp_path):
    settings = conf.Conf(core_state_dir=tmp_path)
    assert "not in the intake's spool" in trust.doubt(settings, made("shop.release", id="good"))


STEPS = ["append", "rotate", "remove", "unasked"]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["append", "rotate", "remove", "unasked"]), st.booleans(), st.integers(0, 5)))
)
def test_a_spool_that_is_followed_tells_what_one_that_is_read_anew_tells(steps):
    with tempfile.TemporaryDirectory() as name:
        place = conf.Conf(core_state_dir=pathlib.Path(name))
        directory = pathlib.Path(name, "spool/ingest")
        directory.mkdir(parents=True)
        spool, segment = trust.Spool(directory), 0
        (directory / f"{segment:020}.jsonl").touch()
        for number, (step, claimed, identity) in enumerate(steps):
            if step == "rotate":
                segment += 1
                (directory / f"{segment:020}.jsonl").touch()
            elif step == "remove" and len(found := sorted(directory.iterdir())) > 1:
                found[0].unlink()
            else:
                line = event.format(
                    event.Event(TIME, f"/host:h{number}", "x.y", 5, {"claimed": True}, optional(identity, claimed))
                )
                with (directory / f"{segment:020}.jsonl").open("ab") as stream:
                    stream.write(line)
            if step != "unasked":
                for one in range(6):
                    assert spool.find(f"e{one}") == event.find(place, f"e{one}")


def optional(identity, claimed):
    return {"id": f"e{identity}", **({"claimed": True} if claimed else {})}

# SPDX-License-Identifier: Apache-2.0
"""What a hostile sender may say to `dre-app receive`: nothing of it makes an app, a file outside, or a process.

Also what kinds of apps the receiving host takes only when its administrator has said so.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile

import app_ground
import pytest
from app_ground import LXC, Ground
from dre import conf, manifest
from dre.app import App
from dre.spec import Spec

NAME, ID = "t-hostile", "0123456789abcdef" * 2


@pytest.fixture
def host(run, settings):
    with Ground(run, settings) as ground:
        app_ground.make_tree(ground.place / "state/base/small")
        yield ground
        assert ground("list") == ""
        assert app_ground.picture(NAME)["lxc"] == []


def described(ground, **changes):
    """What an honest sender says of an app, as its own program writes it, changed."""
    base = str(ground.place / "state/base/small")
    spec = Spec(name=NAME, base=base, created="", privileged=False)
    return {**manifest.of(App(conf.load(ground.config), NAME), spec), **changes}


def archive(*members):
    """An archive with a root directory and *members*: TarInfo or (TarInfo, octets)."""
    octets = io.BytesIO()
    with tarfile.open(fileobj=octets, mode="w", format=tarfile.PAX_FORMAT) as made:
        root = tarfile.TarInfo(".")
        root.type, root.mode = tarfile.DIRTYPE, 0o755
        made.addfile(root)
        for member, content in members:
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return octets.getvalue()


def member(name, kind=tarfile.REGTYPE, mode=0o644, **more):
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    for key, value in more.items():
        setattr(info, key, value)
    return info


def talk(ground, app, packed, *allowed, name=NAME, digest=None, start=False):
    """The answers to a whole migration, sent at once."""
    offer = {"verb": "offer", "id": ID, "name": name, "app": app, "size": len(packed), "from": "/host:evil"}
    offer |= {"digest": digest or hashlib.sha256(packed).hexdigest(), "start": start}
    data = {"verb": "data", "id": ID, "offset": 0, "length": len(packed)}
    octets = json.dumps(offer).encode() + b"\n" + json.dumps(data).encode() + b"\n" + packed
    octets += json.dumps({"verb": "commit", "id": ID}).encode() + b"\n"
    done = ground.run("dre-app", "--config", ground.config, "receive", *allowed, stdin=octets)
    return [json.loads(line) for line in done.stdout.splitlines()]


def forget(ground):
    """Take away what is left of a transfer, so that the next one begins anew."""
    shutil.rmtree(ground.place / "state/app/incoming", ignore_errors=True)


def refused(answers, *words):
    """The last answer is an error that says all *words*."""
    assert answers, "no answer"
    error = next(answer["error"] for answer in answers if answer["code"])
    assert all(word in error for word in words), error
    assert not any("row" in answer for answer in answers)


ARCHIVES = (
    (member("../../../../etc/evil"), "is no plain path"),
    (member("/etc/evil"), "is an absolute name"),
    (member("./disk", tarfile.BLKTYPE, devmajor=8, devminor=0), "is a device"),
    (member("./mem", tarfile.CHRTYPE, devmajor=1, devminor=1), "is a device"),
    (member("./su", mode=0o4755), "--allow-setuid"),
    (member("./link", tarfile.LNKTYPE, linkname="/etc/shadow"), "is an absolute name"),
)


def test_an_archive_that_leads_out_or_gives_privilege(host):
    for bad, word in ARCHIVES:
        refused(talk(host, described(host), archive((bad, b""))), word)
        forget(host)
    assert not os.path.exists("/etc/evil")


def test_a_link_out_of_the_delta_is_not_followed(host):
    link = member("./out", tarfile.SYMTYPE, linkname="/etc")
    refused(talk(host, described(host), archive((link, b""), (member("./out/evil"), b"x"))), "no directory")
    assert not os.path.exists("/etc/evil")


def test_octets_that_are_not_those_offered(host):
    answers = talk(host, described(host), archive(), digest="0" * 64)
    refused(answers, "arrived with digest", "sent was 0000")


DESCRIPTIONS = (
    ({"privileged": True}, ["privileged", "--allow-privileged"]),
    ({"privileged": "no"}, ["privileged", "--allow-privileged"]),
    ({"binds": ["/etc:/mnt"]}, ["binds /etc", "--allow-bind"]),
    ({"binds": ["/srv/../etc:/mnt"]}, ["--allow-bind"]),
    ({"words": ["seccomp=/dev/null"]}, ["'seccomp' is not taken"]),
    ({"words": ["privileged=yes"]}, ["'privileged' is not taken"]),
    ({"words": ["bind=/etc:/mnt"]}, ["'bind' is not taken"]),
    ({"words": ["ssh-key=/etc/shadow"]}, ["not a public key"]),
    ({"words": ["env=A=b\nlxc.hook.pre-start = /bin/evil"]}, ["control characters"]),
    ({"words": ["publish=99999:1"]}, ["publish"]),
    ({"base": "../../../../etc"}, ["its base"]),
    ({"base": "/etc"}, ["its base /etc"]),
    ({"base": "host"}, ["privileged", "--allow-privileged"]),
    ({"identity": {}}, ["not the description"]),
    ({"limits": {"memory": "1; rm -rf /"}}, ["not the description"]),
    ({"limits": {"hook": 1}}, ["unknown limits hook"]),
    ({"command": [1, 2]}, ["not the description"]),
    ({"arch": "vax"}, ["vax"]),
)


def test_a_description_that_is_not_taken(host):
    for change, words in DESCRIPTIONS:
        refused(talk(host, described(host, **change), archive()), *words)


def test_a_name_that_is_none(host):
    for name in ("../evil", "a/b", "-x", "UPPER", "", None, 7):
        refused(talk(host, described(host), archive(), name=name))


def test_lines_that_are_no_requests(host):
    lines = [b"[]", b"{", b'{"verb":"commit"}', b'{"verb":"commit","id":"../../../etc"}', b'{"verb":"__class__"}']
    lines.append(json.dumps({"verb": "commit", "id": ID}).encode())
    done = host.run("dre-app", "--config", host.config, "receive", stdin=b"\n".join(lines) + b"\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["code"] for answer in answers] == [2, 2, 2, 2, 2, 3]
    done = host.run("dre-app", "--config", host.config, "receive", stdin=b"x" * (2 << 20))
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_key_that_is_used_for_something_else(host):
    """Else libvirt, which asks for a shell of its own by the same key, and the receiver wait for each other."""
    words = ("dre-app", "--config", host.config, "receive", "--allow-privileged")
    done = host.run(*words, prefix=("env", "SSH_ORIGINAL_COMMAND=sh -c 'which virt-ssh-helper'"))
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"is for dre-app receive alone, and not for" in done.stderr
    assert host.run(*words, prefix=("env", "SSH_ORIGINAL_COMMAND=dre-app receive")).returncode == 0


def test_what_the_administrator_allows_is_taken(run, settings, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with Ground(run, settings) as host:
        app_ground.make_tree(host.place / "state/base/small")
        app = described(host, privileged=True, binds=[f"{shared}:/mnt"], words=["env=A=b"], command=["/bin/sleep", "9"])
        allowed = ("--allow-privileged", "--allow-setuid", "--allow-bind", tmp_path)
        answers = talk(host, app, archive((member("./su", mode=0o4755), b"#!")), *allowed)
        assert [answer["code"] for answer in answers] == [0, 0, 0]
        assert (LXC / NAME / "delta/su").stat().st_mode & 0o7777 == 0o4755
        assert host("set", NAME).splitlines()[-1] == "command /bin/sleep 9"
        again = host.run("dre-app", "--config", host.config, "receive", stdin=json.dumps(
            {"verb": "abort", "id": ID}).encode() + b"\n")  # fmt: skip
        assert json.loads(again.stdout) == {"code": 0, "stage": "committed"}, "what was taken over is not given back"

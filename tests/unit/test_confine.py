# SPDX-License-Identifier: Apache-2.0
"""Which ids an app gets: such as root alone has in both files, and no other app; and what makes an app privileged."""

import pytest
from dre import confine
from dre.conf import Conf
from dre.errors import DreError, UsageError

RANGE = 65536


@pytest.fixture
def files(tmp_path, monkeypatch):
    """files(TEXT of subuid, TEXT of subgid): instead of those in /etc. usermod writes there what it is told."""
    users, groups = tmp_path / "subuid", tmp_path / "subgid"
    monkeypatch.setattr(confine, "SUBUID", users)
    monkeypatch.setattr(confine, "SUBGID", groups)

    def usermod(argv):
        for option, path in (("--add-subuids", users), ("--add-subgids", groups)):
            if option in argv:
                first, last = map(int, argv[argv.index(option) + 1].split("-"))
                path.write_text(f"{path.read_text() if path.exists() else ''}root:{first}:{last - first + 1}\n")
        files.asked.append(argv)

    monkeypatch.setattr(confine, "run", usermod)

    def write(first, second):
        users.write_text(first)
        groups.write_text(second)

    files = write
    files.asked = []
    return files


def test_the_highest_that_is_free(files, tmp_path):
    files(f"root:1000000:{3 * RANGE}\n", f"root:1000000:{3 * RANGE}\n")
    taken = set()
    for number in (2, 1, 0):
        first = confine._free(Conf(core_state_dir=tmp_path), taken)
        assert first == 1000000 + number * RANGE
        taken.add(first)
    assert files.asked == []
    # When they are used up, spare ones are reserved.
    assert confine._free(Conf(core_state_dir=tmp_path), taken) >= confine.SPARE[0]
    assert len(files.asked) == 1
    # A purge of the package gives back just this.
    added = "".join(f"{path} 1879048192 268304384\n" for path in (confine.SUBUID, confine.SUBGID))
    assert (tmp_path / "app/ids").read_text() == added


def test_only_what_root_alone_has_in_both_files(files):
    files(
        f"root:1000000:{2 * RANGE}\nanna:{1000000 + RANGE + 5}:10\nroot:9000000:{RANGE}\nroot:50000000:9\nbad\n",
        f"0:1000000:{2 * RANGE}\n",
    )
    assert list(confine._reserved(None)) == [1000000]


def test_ranges_of_others_are_kept_apart_from_those_begun_elsewhere(files, tmp_path):
    files(f"root:1000000:{2 * RANGE}\n", f"root:1000000:{2 * RANGE}\n")
    taken = {1000000 + RANGE - 7}  # of another setting, across both
    assert confine._free(Conf(core_state_dir=tmp_path), taken) >= confine.SPARE[0]


def test_the_setting_limits_them(files, tmp_path):
    files(f"root:1000000:{9 * RANGE}\n", f"root:1000000:{9 * RANGE}\n")
    conf = Conf(app_ids=(1000000 + RANGE, 2 * RANGE), core_state_dir=tmp_path)
    assert list(confine._reserved(conf.app_ids)) == [1000000 + 2 * RANGE, 1000000 + RANGE]
    with pytest.raises(DreError, match="no ids are left"):
        confine._free(conf, {1000000 + RANGE, 1000000 + 2 * RANGE})
    assert files.asked == []


def test_what_is_missing_is_reserved_once(files, tmp_path):
    conf = Conf(app_ids=(7000000, RANGE), core_state_dir=tmp_path)
    assert confine._free(conf, set()) == 7000000
    assert confine._free(conf, set()) == 7000000
    assert files.asked == [
        ["usermod", "--add-subuids", "7000000-7065535", "--add-subgids", "7000000-7065535", "root"],
    ]


@pytest.mark.parametrize(
    ("base", "wanted", "refused", "result"),
    [
        ("host", None, None, True),
        ("host", True, None, True),
        ("/tree", None, None, False),
        ("/tree", True, None, True),
        ("/tree", None, True, False),
    ],
)
def test_privileged(base, wanted, refused, result):
    assert confine.privileged(base, wanted, refused) is result


@pytest.mark.parametrize(("base", "wanted"), [("host", None), ("host", True), ("/tree", True)])
def test_privileged_refusals(base, wanted):
    with pytest.raises(UsageError):
        confine.privileged(base, wanted, True)

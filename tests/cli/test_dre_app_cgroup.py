# SPDX-License-Identifier: Apache-2.0
"""dre-app cgroup and top on the command line: who may, what is refused, and with which status."""

import os

import pytest
from conftest import nobody

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize(
    "argv",
    [
        ("cgroup", "create", "t-grp"),
        ("cgroup", "delete", "t-grp"),
        ("cgroup", "limit", "t-grp"),
        ("cgroup", "add", "t-grp", "2"),
        ("cgroup", "list"),
        ("cgroup", "stat"),
        ("top",),
    ],
)
def test_others_than_root_may_not(app, argv):
    assert "needs root" in app(*argv, code=4, prefix=nobody())


@root
@pytest.mark.parametrize(
    "argv",
    [
        ("cgroup",),
        ("cgroup", "create"),
        ("cgroup", "create", "UPPER"),
        ("cgroup", "create", "../t"),
        ("cgroup", "create", "t-grp", "--cpu", "0"),
        ("cgroup", "create", "t-grp", "--net", "1M"),
        ("cgroup", "create", "t-grp", "--swap", "1M"),
        ("cgroup", "add", "t-grp"),
        ("cgroup", "add", "t-grp", "self"),
        ("cgroup", "delete"),
        ("top", "--interval", "0"),
        ("top",),  # no terminal here
    ],
)
def test_bad_usage(app, argv):
    assert app(*argv, code=2).startswith("dre-app: ")


@root
@pytest.mark.parametrize(
    "argv", [("limit", "t-none"), ("stat", "t-none"), ("delete", "t-none"), ("add", "t-none", "1")]
)
def test_unknown_groups_are_3(app, argv):
    assert app("cgroup", *argv, code=3) == "dre-app: t-none: no such group\n"

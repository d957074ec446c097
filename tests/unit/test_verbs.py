# SPDX-License-Identifier: Apache-2.0
"""How the words of a verb are read: options may stand anywhere before `--`."""

import pytest
from dre.cmd import dre_app
from dre.errors import UsageError


def parsed(*argv):
    return dre_app.make_parser(argv).parse_args(argv)


@pytest.mark.parametrize(
    "words",
    [
        ("web1", "good", "--freeze"),
        ("web1", "--freeze", "good"),
        ("--freeze", "web1", "good"),
        ("--description", "a b", "web1", "--freeze", "good"),
        ("web1", "--description=--x", "--freeze", "good"),
    ],
)
def test_options_stand_anywhere(words):
    args = parsed("snapshot", "save", *words)
    assert (args.name, args.tag, args.freeze) == ("web1", "good", True)


def test_an_option_without_its_value_takes_no_name():
    assert parsed("create", "web1", "--sshd-port").sshd_port == "default"
    args = parsed("create", "--sshd-port", "2222", "web1", "--", "prog", "--cpu", "5")
    assert (args.name, args.sshd_port, args.command, args.cpu) == ("web1", "2222", ["prog", "--cpu", "5"], None)


@pytest.mark.parametrize("words", [("web1", "--cpu"), ("--cpu", "--ip", "none", "web1"), ("web1", "--base")])
def test_a_missing_value_is_named(words):
    option = next(word for word in words if word in ("--cpu", "--base"))
    with pytest.raises(UsageError, match=f"argument {option}: expected one argument\n"):
        parsed("create", *words)


def test_what_may_be_left_out_is_not_asked_for():
    with pytest.raises(UsageError, match="required: NAME\n"):
        parsed("create")


@pytest.mark.parametrize("verb", ["create", "exec", "adopt"])
def test_a_command_comes_after_dashes(verb):
    """Else who means two apps makes one, with a program of that name."""
    with pytest.raises(UsageError, match="unexpected 'web2': a command comes after --\n"):
        parsed(verb, "web1", "web2")
    assert parsed(verb, "web1", "--", "web2").command == ["web2"]


def test_stdout_is_a_name_and_no_option():
    assert parsed("export", "web1", "-", "--snapshots").file == "-"

# SPDX-License-Identifier: Apache-2.0
"""The reader of rules lets through what it knows, and nothing that could run anything."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sec-monitor"))

from monitorlib import rulecheck  # noqa: E402

GOOD = {
    "type": "Single",
    "ptype": "RegExp",
    "pattern": "^a(b|c)$",
    "desc": "x",
    "context": "A_$1 && !(B || C)",
    "action": "create A 10; add A $1; copy A %text; write %script {$0}; delete A; none; logonly",
}


def check(**changes):
    lines = [f"{key}={value}" for key, value in {**GOOD, **changes}.items() if value is not None]
    return rulecheck.check("f", "\n".join(lines) + "\n", {"script"})


def test_plain_rules_are_acceptable():
    assert check() == []
    assert check(type="Pair", ptype2="SubStr", pattern2="z", desc2="d", action2="none", window="10") == []
    assert check(type="Jump", action=None, cfset="set$1", constset="no", varmap="x=1; y=2") == []
    assert (
        check(ptype="TValue", pattern="true", action="create A 10 (write %script (a; b); set B - (none)); assign %x $1")
        == []
    )


def test_labels_and_options_are_no_rules():
    text = (
        "type=Options\njoincfset=a b\n\ntype=Single\nptype=SubStr\npattern=a\ncontinue=GoTo L\ndesc=x\naction=none\n\n"
    )
    book = rulecheck.parse("f", text + "label=L\n\ntype=Single\nptype=SubStr\npattern=b\ndesc=x\naction=none\n", set())
    assert (book.findings, len(book.rules), book.labels) == ([], 2, {"L": 1})
    assert book.options["joincfset"] == "a b"
    (finding,) = rulecheck.check("f", text + "label=M\n", set())
    assert finding.line == 7 and "label" in finding.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"ptype": "PerlFunc"},
        {"ptype": "NPerlFunc2"},
        {"ptype2": "PerlFunc"},
        {"ptype": "Cached"},
        {"egptype": "PerlFunc"},
        {"type": "SingleWithScript"},
        {"type": "Jump"},
        {"type": "Calendar"},
        {"pattern": "a(?{ system('id') })"},
        {"pattern": "a(??{ 'x' })"},
        {"context": "=(system('id'))"},
        {"context": "A -> ( sub { 1 } )"},
        {"context": "A :> sub"},
        {"context": "A && =({`id`})"},
        {"context": "varset x"},
        {"action": "shellcmd id"},
        {"action": "ShellCmd id"},
        {"action": "none; spawn id"},
        {"action": "none;shellcmd id"},
        {"action": "eval %x ( system('id') )"},
        {"action": "call %x %y"},
        {"action": "lcall %x -> ( sub { 1 } )"},
        {"action": "pipe 'x' /bin/sh"},
        {"action": "report A /bin/sh"},
        {"action": "cmdexec /bin/id"},
        {"action": "cmdexec"},
        {"action": "cmdexec ../id"},
        {"action": "cmdexec /etc/dre/actions.d/../id"},
        {"action": "cmdexec $1"},
        {"action": "cmdexec %x $1"},
        {"action": "cmdexec note (a b)"},
        {"action": "cmdexec note a;b"},
        {"action": "cmdexec note" + 17 * " x"},
        {"action": "cmdexec note $1", "ptype": "SubStr"},
        {"action": "create A 10 (cmdexec note)", "ptype": "TValue", "pattern": "TRUE"},
        {"action": "write %actions 1%{.tab}=note%{.tab}$0"},
        {"action": "assign %actions x"},
        {"action": "copy A %actions"},
        {"action": "spawnexec note"},
        {"action": "cspawnexec A note"},
        {"action": "pipeexec 'x' note"},
        {"action": "reportexec A note"},
        {"action": "SHELLCMD $1"},
        {"action": "owritecl %script x"},
        {"action": "event 0 x"},
        {"action": "tcpsock a:1 y"},
        {"action": "udgram /run/x y"},
        {"action": "dropinput x"},
        {"action": "addinput /etc/shadow"},
        {"action": "write /etc/cron.d/x y"},
        {"action": "write - y"},
        {"action": "write %other y"},
        {"action": "write %{script} y"},
        {"action": "writen %script y"},
        {"action": "udpsock a:1 y"},
        {"action": "assign %script /etc/passwd"},
        {"action": "copy A %script"},
        {"action": "create A 10 (shellcmd id)"},
        {"action": "create A 10 shellcmd id"},
        {"action": "create A 10 ( none ; shellcmd id )"},
        {"action": "set A 10 (eval %x (1))"},
        {"action": "if %x ( shellcmd id )"},
        {"action": "rewrite 1 x"},
        {"action": "sigemul TERM"},
        {"action": ""},
        {"action": "none;"},
        {"action": "create A 10 ( none ; create B 1 (spawn id) )"},
        {"action": "set A - (lcall %x -> ( sub { 1 } ))"},
        {"action": "write %script (a; b); shellcmd id"},
        {"action": "write %script (a"},
        {"action": "assign %script x"},
        {"action": "empty A %script"},
        {"varmap": "x"},
        {"varmap": "x=1; y=(2)"},
        {"type": "Jump", "action": None, "cfset": "a;b"},
        {"type": "Options", "joincfset": "x"},
        {"window": "10"},
        {"type": "SingleWithSuppress", "window": "0"},
        {"type": "Pair"},
        {"context": "[A"},
        {"context": "A (B)"},
        {"pattern": "(a+)+"},
        {"pattern": "(a|ab|b)*x"},
        {"pattern": r"a\Kb"},
        {"pattern": "a(b"},
        {"continue": "GoTo x"},
        {"window": "1e9"},
        {"type": None},
        {"pattern": None},
    ],
)
def test_whatever_runs_or_reaches_elsewhere_is_refused_with_its_line(changes):
    findings = check(**changes)
    assert findings
    assert all(finding.line >= 1 and finding.reason for finding in findings)


@pytest.mark.parametrize("end", ["\\\n", "\\ \n", "\\\t \n", " \\\n   "])
def test_a_continued_line_is_read_as_sec_reads_it(end):
    text = f"type=Single\nptype=SubStr\npattern=a\naction=none;{end}shellcmd id\n"
    (finding,) = rulecheck.check("f", text, {"script"})
    assert "shellcmd" in finding.reason and finding.line == 4


def test_a_comment_that_is_continued_hides_nothing():
    text = "# note \\\ntype=Single\n\ntype=Single\nptype=SubStr\npattern=a\naction=shellcmd id\n"
    (finding,) = rulecheck.check("f", text, {"script"})
    assert finding.line == 7


def test_given_twice_and_no_rule_at_all_are_refused():
    assert rulecheck.check("f", "type=Single\ntype=Single\nptype=SubStr\npattern=a\n", set())
    assert rulecheck.check("f", "# nothing\n", set())


@pytest.mark.parametrize("octets", [b"type=Single\r\n", b"\x0b", b"\xc3\xa4", b"\x00", b"x" * (rulecheck.LIMIT + 1)])
def test_odd_octets_are_refused(tmp_path, octets):
    (tmp_path / "f").write_bytes(octets)
    with pytest.raises(ValueError):
        rulecheck.read(tmp_path / "f")


def test_what_rules_want_again_after_a_restart():
    assert rulecheck.remembered("# remember: shop.release 600\n#remember: a b\nx\n") == {"shop.release": 600}


def test_a_program_is_a_request_with_as_many_words_as_the_rule_has():
    (made,) = rulecheck.actions("cmdexec /etc/dre/actions.d/note $1 --to=$2 %s -v", set())
    words = ["5", "=note", "?$1", "+--to=$2", "?%s", "=-v", "$0"]
    assert made == ("write", "actions", "%{.tab}".join(words))
    assert check(action="cmdexec note $1; create A 10 (cmdexec note)") == []


@pytest.mark.parametrize("cut", ["", "\\\n", "\\\n   \\\n"])
def test_sec_is_given_the_request_and_the_same_lines(cut):
    text = f"type=Single\n# c\n\naction=none; {cut}create A 9 (cmdexec  note $1 ; none);cmdexec b\ndesc=cmdexec x\n"
    told = rulecheck.for_sec(text, set())
    assert told.count("\n") == text.count("\n") and told.splitlines()[-1] == "desc=cmdexec x"
    (_, action), (_, desc) = list(rulecheck._rules(told))[-1]
    assert desc == "desc=cmdexec x"
    request = "write %actions 2%{.tab}=note%{.tab}?$1%{.tab}$0"
    assert (
        " ".join(action.split()) == f"action=none; create A 9 ({request}; none);write %actions 1%{{.tab}}=b%{{.tab}}$0"
    )


def test_a_text_that_looks_like_a_program_is_not_told_to_sec_as_one():
    assert check(action="write %script (cmdexec note)") == []
    with pytest.raises(ValueError, match="text that holds"):
        rulecheck.for_sec("action=write %script (cmdexec note)\n", {"script"})

# SPDX-License-Identifier: Apache-2.0
"""A script is read as written, without YAML's surprises, and every refusal says where and why."""

import hashlib
import json
import pathlib
import re
import sys

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / part) for part in ("dscript", "sec-monitor")]

from dscriptlib import load, store  # noqa: E402
from monitorlib import watchfile  # noqa: E402

DESIGN = b"""\
dscript: 1
name: web-overload
agreed: {case: cdshop, goal: G26, evidence: E14, by: [owner, operator]}
monitors:
  - {id: busy, watch: cpu, of: web1, above: 90%, clear: 70%, for: 3s}
  - {id: slow, watch: http, url: "http://10.231.0.11/", above: 300ms, clear: 200ms, for: 0s}
responses:
  - id: slow-down
    when: busy
    steps:
      - {action: limit, of: web1, cpu: 50%, timeout: 5s, revert: when-clear}
    at-most: {attempts: 3, per: 10m, cooldown: 60s}
    then: put-back                      # when it did not help
  - id: put-back
    when: [slow, {event: shop.overload, after: shop.release, within: 10m}]
    steps:
      - {action: undo, of: web1, tag: good, timeout: 30s, expect: {watch: http, within: 20s}}
    if-failed: revert                   # steps already done, in reverse order
    at-most: {attempts: 2, per: 1h}
    then: call-owner
  - {id: call-owner, steps: [{action: notify, to: owner}]}
"""
HEAD = "dscript: 1\nname: x\n"
CALL = "responses:\n  - {id: call, steps: [{action: notify, to: owner}]}\n"


def test_the_example_of_the_contract_loads_as_written():
    script, findings = load.load(DESIGN, "F")
    assert findings == []
    assert script.sha256 == hashlib.sha256(DESIGN).hexdigest()
    assert script.agreed == {"case": "cdshop", "goal": "G26", "evidence": "E14", "by": ["owner", "operator"]}
    busy, slow = script.monitors
    assert (busy.watch, busy.of, busy.above, busy.clear, busy.hold) == ("cpu", "web1", 90.0, 70.0, 3.0)
    assert (slow.url, slow.above, slow.clear, slow.hold) == ("http://10.231.0.11/", 0.3, 0.2, 0.0)
    down, back, call = script.responses
    assert [trigger.monitor for trigger in down.when] == ["busy"]
    assert (down.at_most.attempts, down.at_most.per, down.at_most.cooldown) == (3, 600.0, 60.0)
    assert (down.steps[0].values, down.steps[0].timeout, down.steps[0].revert) == (
        {"of": "web1", "cpu": "50"},
        5.0,
        "when-clear",
    )
    assert back.when[0].monitor == "slow"
    assert (back.when[1].event, back.when[1].after, back.when[1].within) == ("shop.overload", "shop.release", 600.0)
    assert (back.steps[0].expect.watch, back.steps[0].expect.within) == ("http", 20.0)
    assert (back.if_failed, back.then, call.then, call.when) == ("revert", "call-owner", None, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "x: §&a 1\n", "anchor &a"),
        (HEAD + "x: §*a\n", "alias *a"),
        (HEAD + "x: §!!python/object:os.system {}\n", "tag tag:yaml.org,2002:python/object:os.system"),
        (HEAD + "x: §! y\n", "tag !"),
        (HEAD + "§name: y\n", "'name' is given twice"),
        (HEAD + "? §[a]\n: b\n", "a key must be a word"),
        (HEAD + CALL + "§---\nx: 1\n", "one file holds one document"),
        (HEAD + "responses: " + "[" * load.DEPTH + "§[" + "]" * 13, "nested deeper"),
        (HEAD + "x: [\n§", "not YAML"),
        (HEAD + "§x: \x07\n", "U+0007"),
        ("§", "the file is empty"),
        ("§- a\n", "a script must be a mapping"),
        ("§" + HEAD, "lacks the key 'responses'"),
        (HEAD + "responses: §[]\n", "at least one item"),
        (HEAD + "monitors:§\n" + CALL, "the value is missing"),
        (HEAD + CALL + "§on: x\n", "unknown key 'on'"),
        ("dscript: §2\nname: x\n" + CALL, "expected 1, got '2'"),
        ("dscript: 1\nname: §../x\n" + CALL, "'../x' is not a name"),
        (
            HEAD + "monitors: [{id: m, watch: §weather}]\n" + CALL,
            "expected cpu or memory or liveness or http or host-cpu",
        ),
        (HEAD + "monitors: [§{id: m, of: a}]\n" + CALL, "a monitor needs 'watch'"),
        (HEAD + "monitors: [§{id: m, watch: cpu, of: a, above: 9}]\n" + CALL, "lacks the key 'clear'"),
        (HEAD + "monitors: [{id: m, watch: liveness, of: a, missing: §1:30}]\n" + CALL, "'1:30' is not a duration"),
        (
            HEAD + "monitors: [{id: m, watch: http, url: §'file:///etc/shadow', above: 2s, clear: 1s}]\n" + CALL,
            "is not an address",
        ),
        (HEAD + CALL + "  - §{id: call, steps: [{action: record, text: x}]}\n", "'call' is defined twice"),
        (HEAD + CALL + "  - {id: r, steps: [{action: §reboot, of: a}]}\n", "unknown action 'reboot'"),
        (HEAD + CALL + "  - {id: r, steps: [{action: undo, of: §'a;id'}]}\n", "'a;id' is not a name"),
        (HEAD + CALL + "  - {id: r, steps: [{action: undo, of: §--help}]}\n", "'--help' is not a name"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: limit, of: a}]}\n", "at least one of cpu, memory, pids"),
        (
            HEAD + CALL + "  - {id: r, steps: [{action: stop, of: a, §shell: x}]}\n",
            "unknown key 'shell' in a step",
        ),
        (HEAD + "monitors: [§{id: m, watch: liveness, missing: 3s}]\n" + CALL, "needs 'of', an app, or 'system'"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: threshold, monitor: m, clear: 8}]}\n", "'above' or 'below'"),
        (HEAD + CALL + "  - {id: r, steps: [{action: threshold, monitor: m, below: §x, clear: 8}]}\n", "not a value"),
        (HEAD + CALL + "  - {id: r, steps: [{action: rules, version: §strict}]}\n", "number from 1"),
        (HEAD + CALL + "  - {id: r, steps: [{action: scan, system: s, finding: §virus}]}\n", "hidden.process"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: scan, system: s, finding: hidden.file}]}\n", "mount"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: scan, system: s, finding: keylogger, mount: /x}]}\n", "mount"),
        (HEAD + "monitors: [§{id: m, watch: cpu, of: a, below: 9}]\n" + CALL, "lacks the key 'clear'"),
        (HEAD + "monitors: [§{id: m, watch: cpu, of: a, above: 9, below: 2, clear: 8}]\n" + CALL, "not both"),
        (HEAD + "monitors: [{id: m, watch: liveness, of: a, missing: 1s, §below: 2}]\n" + CALL, "unknown key 'below'"),
        (HEAD + "monitors: [{id: m, watch: disk, path: §var, above: 9, clear: 8}]\n" + CALL, "absolute path"),
        (HEAD + "monitors: [{id: m, watch: command, argv: §[../x], above: 9, clear: 8}]\n" + CALL, "in actions.d"),
        (HEAD + CALL + "  - {id: r, steps: [{action: stop, of: a, timeout: §0s}]}\n", "above 0"),
        (HEAD + CALL + "  - {id: r, steps: [{action: undo, of: a, revert: §on-failure}]}\n", "undo cannot be reverted"),
        (HEAD + CALL + "  - {id: r, steps: [{action: emit, type: §watch.cleared}]}\n", "only D-RE's own programs"),
        (
            HEAD + CALL + "  - {id: r, when: §{event: a.b, after: c.d}, steps: [{action: stop, of: a}]}\n",
            "belong together",
        ),
        (HEAD + CALL + "  - {id: r, at-most: {attempts: §0, per: 1m}, steps: [{action: stop, of: a}]}\n", "1 to 9999"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: stop}]}\n", "say 'of', an app, or 'system'"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: undo, of: a, system: b}]}\n", "only one of them"),
        (HEAD + CALL + "  - {id: r, steps: [§{action: limit, system: a, pids: 4}]}\n", "for apps only"),
        (HEAD + CALL + "  - {id: r, steps: [{action: migrate, of: a, to: §-oProxyCommand=x}]}\n", "is not a HOST"),
        (HEAD + CALL + "  - {id: r, steps: [{action: run, argv: §[/bin/sh, -c, id]}]}\n", "in actions.d"),
        (HEAD + CALL + "  - {id: r, steps: [{action: run, argv: [a], user: §'0'}]}\n", "name of a user"),
        (
            HEAD + CALL + "  - {id: r, steps: [§{action: ask, to: o, text: x, default: refuse}]}\n",
            "lacks the key 'timeout'",
        ),
        (
            HEAD + CALL + "  - {id: r, steps: [{action: ask, to: o, text: x, default: §maybe, timeout: 1m}]}\n",
            "approve or",
        ),
        (HEAD + "monitors: [§{id: m, watch: event, type: a.b}]\n" + CALL, "lacks the key 'within'"),
        (HEAD + "monitors: [{id: m, watch: event, type: a.b, within: 1m, §above: 3}]\n" + CALL, "unknown key 'above'"),
        (HEAD + "monitors: [{id: m, watch: event, type: a.b, within: 1m, fields: §[x]}]\n" + CALL, "fields must be a"),
        (
            HEAD + "monitors: [{id: m, watch: sysmon, finding: §ghost, system: p, within: 1m}]\n" + CALL,
            "expected hidden",
        ),
        (HEAD + CALL + "  - {id: r, steps: §{a: b}}\n", "steps must be a list"),
        (HEAD + CALL + "  - {id: §[r], steps: [{action: stop, of: a}]}\n", "expected one value"),
    ],
)
def test_a_refusal_names_place_and_reason(text, words):
    before, text = text.split("§")[0], text.replace("§", "")  # § marks where the finding must point
    place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    script, findings = load.load(text.encode(), "F")
    assert script is None
    told = [str(finding) for finding in findings]
    assert any(said.startswith(f"F:{place}: error: ") and words in said for said in told), told


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("of: a, to: localhost", "another name"),
        ("of: a, to: h2, tls: yes", "tls is for systems only"),
        ("of: a, to: h2, live: yes, as: b", "live as another one"),
        ("system: a, to: localhost, as: b, tls: yes", "means nothing on one host"),
        ("system: a, to: h2, live: yes", "needs copy-storage or shared-storage"),
        ("system: a, to: h2, copy-storage: yes, shared-storage: yes", "only one of them"),
        ("system: a, to: h2, tls: yes", "tls is of what moves live"),
        ("system: a, to: h2, live: yes, copy-storage: yes", "how memory and disks cross the network"),
        ("of: a, to: h2, live: yes, copy-storage: yes, unencrypted: no, without-snapshots: yes", None),
        ("system: a, to: localhost, as: b, live: yes", None),
        ("system: a, to: h2, shared-storage: yes, live: yes", None),
        ("system: a, to: h2", None),
    ],
)
def test_a_move_that_would_be_refused_in_any_case_is_no_step(values, words):
    script, findings = load.load(f"{HEAD}{CALL}  - {{id: r, steps: [{{action: migrate, {values}}}]}}\n".encode(), "F")
    assert (script is None) == (words is not None)
    assert [words in str(finding) for finding in findings] == [True] * bool(words)


AGREED = """\
dscript: 1
name: agreed
agreed: {case: c, goal: G1, by: [owner], parameters: {shop: web1, most: 90%, calm: 70%, long: 3s, word: 'two $most'}}
monitors:
  - {id: busy, watch: cpu, of: $shop, above: $most, clear: $calm, for: $long}
responses:
  - id: r
    when: busy
    steps:
      - {action: restart, of: $shop, timeout: $long, expect: {watch: cpu, within: $long}}
      - {action: run, argv: [job, $shop, a$shop, $most x]}
      - {action: record, text: $word}
    at-most: {attempts: 2, per: 1h, cooldown: $long}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""


def test_a_parameter_stands_for_what_is_agreed_and_for_nothing_else():
    script, findings = load.load(AGREED.encode(), "F")
    assert findings == []
    (monitor,), (response, _) = script.monitors, script.responses
    assert (monitor.of, monitor.above, monitor.clear, monitor.hold) == ("web1", 90.0, 70.0, 3.0)
    restart, job, record = response.steps
    assert (restart.values, restart.timeout, restart.expect.within) == ({"of": "web1"}, 3.0, 3.0)
    assert job.values["argv"] == ("job", "web1", "a$shop", "$most x")  # whole values alone, and no second time
    assert (record.values["text"], response.at_most.cooldown) == ("two $most", 3.0)
    assert script.agreed["parameters"]["most"] == "90%"
    # Where none are agreed it is a word like others, and no value of another kind.
    argv = HEAD + CALL + "  - {id: r, steps: [{action: run, argv: [job, $HOME]}]}\n"
    assert load.load(argv.encode(), "F")[0].response("r").steps[0].values["argv"] == ("job", "$HOME")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("of: $shop, timeout", "of: §$shopp, timeout", "$shopp: no parameter 'shopp' is agreed"),
        ("of: $shop, above", "of: §web1, above", None),
        ("parameters: {", "parameters: {§spare: 1, ", "nothing is said by it"),
        ("shop: web1", "shop: §'web1;id'", None),
        ("of: $shop, above: $most", "of: $shop, above: §$shop", "above: 'web1' is not a percentage"),
        ("id: busy, watch: cpu", "id: busy, watch: §$most", "watch: expected"),
        ("action: restart", "action: §$most", "unknown action '$most'"),
        ("{shop: web1", "{shop: §[web1]", "expected one value"),
        ("word: 'two $most'", "word: §$most", "none stands for another one"),
        ("word: 'two", "§Word: 'two", "'Word' is not a name"),
    ],
)
def test_a_parameter_that_is_none_is_refused_where_it_is(old, new, words):
    text = AGREED.replace(old, new, 1)
    before, text = text.split("§")[0], text.replace("§", "")
    place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    script, findings = load.load(text.encode(), "F")
    told = [str(finding) for finding in findings]
    if words is None:
        assert told == [] or any("'web1;id' is not a name" in said for said in told)
        assert (script is None) == bool(told)
    else:
        assert script is None and any(said.startswith(f"F:{place}: error: ") and words in said for said in told), told


def test_all_mistakes_are_shown_at_once():
    text = HEAD + "bad: 1\n" + CALL + "  - {id: r, then: A B, steps: [{action: stop, of: $(id)}, {action: nothing}]}\n"
    _, findings = load.load(text.encode(), "F")
    assert len(findings) == 4


def test_other_octets_than_utf8_are_refused_with_their_line():
    _, (finding,) = load.load(HEAD.encode() + b"x: \xff\n", "F")
    assert str(finding) == "F:3:1: error: not UTF-8 text"


def test_a_long_file_is_refused(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_bytes(HEAD.encode() + b"#" * load.LIMIT)
    script, (finding,) = load.load(load.read(path), "F")
    assert script is None and "longer than 256 KiB" in finding.text


def test_words_that_plain_yaml_would_change_stay_words():
    text = HEAD + "agreed: {case: no, goal: 012, evidence: 1.10, by: [on]}\n" + CALL
    script, findings = load.load(text.encode(), "F")
    assert not findings
    assert script.agreed == {"case": "no", "goal": "012", "evidence": "1.10", "by": ["on"]}


def test_every_step_has_a_file_and_a_meaning():
    from dscriptlib.steps import KINDS

    words = "limit freeze thaw isolate rejoin restart stop checkpoint snapshot undo migrate notify emit record ask run"
    more = "rules scan threshold"  # the monitors' own, see README.md
    assert set(KINDS) == {*words.split(), *more.split()}  # those of the contract
    assert all((kind.argv is None) != (kind.act is None) for kind in KINDS.values())
    unproven = {name for name, kind in KINDS.items() if not kind.needs_proof}
    assert unproven == {"ask", "notify", "record", "snapshot"}


def test_argvs_of_steps():
    from dscriptlib.steps import KINDS

    limit = KINDS["limit"]
    values = {"of": "web1", "cpu": "50", "memory": "1024"}
    assert limit.argv(values) == ["limit", "web1", "--cpu", "50", "--memory", "1024"]
    former = limit.former(values, {"cpu_limit": None, "memory_limit": 4096.0, "pids_limit": 7})
    assert former == {"cpu": "none", "memory": "4096"}
    assert limit.compensate(values, former) == ["limit", "web1", "--cpu", "none", "--memory", "4096"]
    assert KINDS["undo"].argv({"of": "web1"}) == ["undo", "web1"]
    assert KINDS["snapshot"].argv({"of": "web1", "tag": "good"}) == ["snapshot", "save", "web1", "good"]
    for name in ("restart", "stop", "freeze", "thaw", "isolate", "rejoin"):
        assert KINDS[name].argv({"of": "web1"}) == KINDS[name].argv({"system": "web1"}) == [name, "web1"]
    back = {name: kind.compensate({"of": "a"}, {"version": "7"})[0] for name, kind in KINDS.items() if kind.compensate}
    assert back == {"freeze": "thaw", "isolate": "rejoin", "limit": "limit", "stop": "start", "rules": "rollback"}
    assert KINDS["checkpoint"].argv({"system": "pay", "tag": "t"}) == ["checkpoint", "save", "pay", "t"]
    move = {"system": "pay", "to": "h2", "live": True, "copy-storage": True, "tls": True, "as": "pay2"}
    assert KINDS["migrate"].argv(move) == ["migrate", "--live", "--copy-storage", "--tls", "--as", "pay2", "pay", "h2"]
    move = {"of": "web1", "to": "h2", "without-snapshots": True, "live": False}
    assert KINDS["migrate"].argv(move) == ["migrate", "--without-snapshots", "web1", "h2"]
    assert re.fullmatch("[a-z]+", "".join(KINDS))


KINDS = """
  - {id: a, watch: cpu, of: web1}
  - {id: b, watch: apache, url: "http://127.0.0.1/server-status?auto"}
  - {id: c, watch: mysql, file: /etc/dre/db.cnf, of: db1, missing: 30s}
  - {id: d, watch: disk, path: /var, above: 90%, clear: 80%, for: 1m}
  - {id: e, watch: liveness, system: vm1, missing: 15s}
  - {id: f, watch: command, system: vm1, argv: [/usr/bin/queue, "a b"], above: 10, clear: 5, every: 3s}
  - {id: g, watch: clock, above: 500ms, clear: 100ms}
  - {id: h, watch: host-memory}
  - {id: i, watch: event, type: ssh.failed, source: "/host:h7/*", fields: {user: root}, count: 5, within: 15m}
  - {id: j, watch: sequence, first: ssh.failed, then: ssh.login, unless: ssh.reset, within: 1m}
  - {id: k, watch: sysmon, finding: hidden.process, system: vm1, within: 2m}
  - {id: l, watch: evidence, type: shop.backup, missing: 25h}
  - {id: m, watch: cpu, of: web1, below: 5%, clear: 10%, for: 1h}
"""


def test_what_a_script_says_is_what_dre_watch_reads(tmp_path):
    """Each kind on its way from the script to the monitor, and the limits of the first D-RE where it says none."""
    text = HEAD + "monitors:" + KINDS + CALL
    script, findings = load.load(text.encode(), "F")
    assert findings == []
    (tmp_path / "x.json").write_text(json.dumps(store.compiled(script)))
    made = {one.id: one for one in watchfile.read(tmp_path / "x.json")}
    limits = {name: (one.bound, one.clear) for name, one in made.items()}
    assert limits == {
        **{"a": (90.0, 80.0), "b": (2500.0, 2000.0), "c": (1.0, 0.8), "d": (90.0, 80.0), "e": (0.5, 0.5)},
        **{"f": (10.0, 5.0), "g": (0.5, 0.1), "h": (90.0, 80.0), "m": (5.0, 10.0)},
    }
    assert [name for name, one in made.items() if one.below] == ["m"]
    assert (made["c"].missing, made["d"].hold, made["e"].hold, made["f"].every) == (30.0, 60.0, 15.0, 3.0)
    assert (made["e"].system, made["f"].argv) == ("vm1", ("/usr/bin/queue", "a b"))

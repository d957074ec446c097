# SPDX-License-Identifier: Apache-2.0
"""The shipped JSON Schema is that of the loader's tables, takes what the loader takes, and refuses what it refuses."""

import json
import pathlib
import sys

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema", reason="apt-get install python3-jsonschema")
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

from dscriptlib import load, schema, tables  # noqa: E402
from dscriptlib.steps import KINDS  # noqa: E402
from test_dscript_load import AGREED, DESIGN, HEAD  # noqa: E402
from test_dscript_load import KINDS as MONITORS  # noqa: E402

SHIPPED = ROOT / "dscript/schema/dscript-1.json"
CALL = "responses:\n  - {id: call, steps: [{action: notify, to: owner}]}\n"
STEPS = """
      - {action: ask, to: operator, text: may I, default: refuse, timeout: 5m}
      - {action: run, argv: [job, "1"], user: backup, expect: {watch: cpu, within: 3s}}
      - {action: migrate, system: pay1, to: h2, live: yes, copy-storage: yes, tls: yes}
      - {action: limit, of: web1, cpu: 50, memory: 1G, pids: 9, revert: on-failure}
      - {action: threshold, monitor: m, below: 5%, clear: 7%}
      - {action: rules, version: 7}
      - {action: scan, system: pay1, finding: hidden.module}
      - {action: scan, system: pay1, finding: hidden.file, mount: /srv/data}
"""
GOOD = [DESIGN.decode(), HEAD + "monitors:" + MONITORS + CALL, HEAD + CALL + "  - id: a\n    steps:" + STEPS]
GOOD += [AGREED, AGREED.replace("attempts: 2", "attempts: $n").replace("word: 'two", "n: 2, word: 'two")]
GOOD += [path.read_text() for path in sorted((ROOT / "dscript/scripts").glob("*.yaml"))]
BAD = [
    HEAD,
    AGREED.replace("action: restart", "action: $most"),
    AGREED.replace("id: busy", "id: $most"),
    AGREED.replace("name: agreed", "name: $shop"),
    AGREED.replace("{shop: web1", "{shop: [web1]"),
    "dscript: 2\nname: x\n" + CALL,
    "dscript: 1\nname: X Y\n" + CALL,
    HEAD + "responses: []\n",
    HEAD + CALL + "on: x\n",
    HEAD + "monitors: [{id: m, watch: weather}]\n" + CALL,
    HEAD + "monitors: [{id: m, of: a}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: cpu, of: a, above: 9}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: http, url: 'http://a/', above: 2 s, clear: 1s}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: cpu, of: a, below: 9}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: cpu, of: a, above: 9, below: 2, clear: 8}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: disk, path: /, clear: 8}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: disk, path: /}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: event, type: a.b}]\n" + CALL,
    HEAD + "monitors: [{id: m, watch: liveness, of: a, system: b, missing: 3s}]\n" + CALL,
    HEAD + CALL + "  - {id: r, steps: [{action: reboot, of: a}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: stop}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: threshold, monitor: m, clear: 8}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: threshold, monitor: m, above: 9, below: 7, clear: 8}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: rules, version: 0}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: scan, finding: keylogger}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: scan, system: s, finding: hidden.file, mount: data}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: stop, of: a, shell: x}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: stop, of: a, revert: maybe}]}\n",
    HEAD + CALL + "  - {id: r, steps: [{action: ask, to: o, text: x, default: refuse}]}\n",
    HEAD + CALL + "  - {id: r, when: {event: a.b, after: c.d}, steps: [{action: stop, of: a}]}\n",
    HEAD + CALL + "  - {id: r, at-most: {attempts: 0, per: 1m}, steps: [{action: stop, of: a}]}\n",
]


def valid(text, loader):
    made = jsonschema.Draft7Validator(json.loads(SHIPPED.read_text()))
    return not list(made.iter_errors(yaml.load(text, Loader=loader)))  # noqa: S506 - the safe ones


def test_the_shipped_file_is_that_of_the_tables_and_names_its_version():
    assert json.loads(SHIPPED.read_text()) == schema.schema(), "python3 -m dscriptlib.schema >schema/dscript-1.json"
    jsonschema.Draft7Validator.check_schema(schema.schema())
    assert schema.schema()["properties"]["dscript"] == {"enum": ["1", 1]}


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("loader", [yaml.BaseLoader, yaml.SafeLoader])  # as we read it, and as editors do
def test_what_the_loader_takes_is_valid(text, loader):
    assert load.load(text.encode(), "F")[1] == []
    assert valid(text, loader)


@pytest.mark.parametrize("text", BAD)
def test_what_the_loader_refuses_is_not_valid(text):
    assert load.load(text.encode(), "F")[0] is None
    assert not valid(text, yaml.SafeLoader)


def test_every_monitor_and_action_is_in_it():
    properties = schema.schema()["properties"]
    assert properties["monitors"]["items"]["properties"]["watch"]["enum"] == list(tables.WATCHES)
    step = properties["responses"]["items"]["properties"]["steps"]["items"]
    assert step["properties"]["action"]["enum"] == list(KINDS)

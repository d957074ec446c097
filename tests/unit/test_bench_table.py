# SPDX-License-Identifier: Apache-2.0
"""What bench/table makes of what measurements print, for those here print their own forms of table."""

import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
loader = importlib.machinery.SourceFileLoader("bench_table", str(ROOT / "bench/table"))
table = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_table", loader))
sys.dont_write_bytecode = True
loader.exec_module(table)

PRINTED = """2 processors

| what | peer | ours | peer's | ratio | pairs | aim |
|---|---|---|---|---|---|---|
| dre-app undo | lxc <snapshot> | 197 ms | 98 ms | 2.01 | 9 | |
| dre-app list | lxc-ls -f | 17 ms | 234 ms | 0.07 | 21 | ≤ 0.1: met |

Processor time: 17 ms | beside 186.

| D-Box | RSA | 582 ms | 5531 ms | 0.10 | 7 |  |

| call | passed | processor | ratio |
|---|---|---|---|
| dre-app --help | 90 ms | 88 ms | 8.30 |

| what | ours | theirs | times | recognised | aim |
|---|---|---|---|---|---|
| one file | 419,000/s | 690/s | 1,605.0 | yes | ≥ 100 000: MISSED |
| nothing | 1/s | none | - | | |
"""


def test_every_table_is_found_with_its_ratios_and_aims():
    assert table.bars(PRINTED) == [
        ("dre-app undo / lxc <snapshot>", 2.01, "2.01", "bar"),
        ("dre-app list / lxc-ls -f", 0.07, "0.07  ≤ 0.1: met", "met"),
        ("D-Box / RSA", 0.1, "0.10", "bar"),
        ("dre-app --help", 8.3, "8.30", "bar"),
        ("one file", 1605.0, "1,605.0  ≥ 100 000: MISSED", "missed"),
    ]


def test_the_picture_has_each_row_inside_it():
    rows = table.bars(PRINTED)
    root = xml.etree.ElementTree.fromstring(table.picture("run", rows))  # noqa: S314
    shapes = [one for one in root.iter() if one.tag.endswith("rect") and "class" in one.attrib]
    assert [one.attrib["class"] for one in shapes] == ["bar", "met", "bar", "bar", "missed"]
    assert all(
        0 <= float(one.attrib["x"]) <= float(one.attrib["x"]) + float(one.attrib["width"]) <= table.WIDTH
        for one in shapes
    )
    one = next(float(line.attrib["x1"]) for line in root.iter() if line.attrib.get("class") == "one")
    assert float(shapes[0].attrib["x"]) == one  # slower than the peer: to the right of 1
    assert float(shapes[1].attrib["x"]) + float(shapes[1].attrib["width"]) == one


def test_what_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    for name, text in (("run", f"cat <<'X'\n{PRINTED}X\n"), ("many", "echo half; exit 3")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["table", "many", "run", "--output", str(tmp_path / "out")])
    assert table.main() == 1
    page = (tmp_path / "out/figures.md").read_text()
    assert "half" in page and "exit status 3" in page and "| dre-app undo |" in page and "run.svg" in page
    assert "FAILED: many" in capsys.readouterr().out and (tmp_path / "out/run.svg").exists()


def test_all_measurements_are_named():
    others = {"README.md", "ground.py", "isf.py", "table", "__pycache__"}
    assert set(table.MEASUREMENTS) == {path.name for path in (ROOT / "bench").iterdir()} - others
    done = subprocess.run([ROOT / "bench/table", "nosuch"], capture_output=True, text=True)
    assert done.returncode == 2 and "nosuch" in done.stderr

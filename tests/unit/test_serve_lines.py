# SPDX-License-Identifier: Apache-2.0
"""The lines of --serve: what is a request and what is not, and that no row or name slips by."""

import argparse
import json
import os
import threading

import pytest
from dre import serve
from dre.cmd import dre_app
from dre.serve import LINE, RequestError, Rows, parse


def lines_of(octets):
    """What serve reads of *octets*, given by a pipe in pieces."""
    reading, writing = os.pipe()

    def write():
        with os.fdopen(writing, "wb") as stream:
            stream.write(octets)

    writer = threading.Thread(target=write)
    writer.start()
    found = list(serve._lines(reading))
    writer.join()
    os.close(reading)
    return found


def test_request():
    request = parse(b'{"id":1,"argv":["list"]}', 600.0)
    assert (request.id, request.argv, request.deadline, request.stdin) == (1, ("list",), 600.0, b"")
    request = parse(b'{"argv":[],"id":"x","deadline":2,"stdin":"aGk="}', 600.0)
    assert (request.id, request.argv, request.deadline, request.stdin) == ("x", (), 2.0, b"hi")


@pytest.mark.parametrize(
    ("line", "identity", "reason"),
    [
        (b"", None, "not JSON"),
        (b"{", None, "not JSON"),
        (b"\xff", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b'{"id":1,"a":' + b"[" * 100_000 + b"}", None, "not JSON"),
        (b'{"id":' + b"9" * 5000 + b"}", None, "not JSON"),
        (b'{"id":1,"argv":["list"],"argv":["recover"]}', None, "twice"),
        (b"[]", None, "object"),
        (b"null", None, "object"),
        (b'{"id":1e5,"argv":[]}', None, "id"),
        (b'{"id":true,"argv":[]}', None, "id"),
        (b'{"id":[1],"argv":[]}', None, "id"),
        (b'{"id":9223372036854775808,"argv":[]}', None, "id"),
        (b'{"id":"' + b"x" * 257 + b'","argv":[]}', None, "id"),
        (b'{"id":1}', 1, "argv"),
        (b'{"id":1,"argv":"list"}', 1, "argv"),
        (b'{"id":1,"argv":["list",1]}', 1, "argv"),
        (b'{"id":1,"argv":["list",null]}', 1, "argv"),
        (b'{"id":1,"argv":["li\\u0000st"]}', 1, "NUL"),
        (b'{"id":1,"argv":["\\ud800"]}', 1, "surrogate"),
        (b'{"id":1,"argv":[],"deadline":0}', 1, "deadline"),
        (b'{"id":1,"argv":[],"deadline":-1}', 1, "deadline"),
        (b'{"id":1,"argv":[],"deadline":NaN}', 1, "deadline"),
        (b'{"id":1,"argv":[],"deadline":1e999}', 1, "deadline"),
        (b'{"id":1,"argv":[],"deadline":true}', 1, "deadline"),
        (b'{"id":1,"argv":[],"deadline":"1"}', 1, "deadline"),
        (b'{"id":1,"argv":[],"stdin":"?"}', 1, "base64"),
        (b'{"id":1,"argv":[],"stdin":"aGk=\\n"}', 1, "base64"),
        (b'{"id":1,"argv":[],"stdin":"\\u20ac"}', 1, "base64"),
        (b'{"id":1,"argv":[],"stdin":[]}', 1, "base64"),
        (b'{"id":1,"argv":[],"env":{}}', 1, "unknown key"),
        (None, None, "more than"),
    ],
)
def test_no_request(line, identity, reason):
    with pytest.raises(RequestError, match=reason) as caught:
        parse(line, 600.0)
    assert caught.value.id == identity


def test_lines():
    assert lines_of(b"a\n\nbc\nd") == [b"a", b"", b"bc", b"d"]
    assert lines_of(b"") == []
    longest = b"x" * LINE
    assert lines_of(longest + b"\n" + longest + b"y\nz\n") == [longest, None, b"z"]
    assert lines_of(longest * 3) == [None]


def test_rows_keep_whole_lines_of_what_fits():
    rows = Rows()
    line = json.dumps({"name": "ä" * 1000}, ensure_ascii=False)
    for _ in range(2000):
        rows.write(line + "\n")
    assert rows.cut
    assert set(rows.lines) == {line}
    assert serve.ROWS - 3000 < sum(len(line.encode()) + 1 for line in rows.lines) <= serve.ROWS


def test_answer_is_one_line_of_json_whatever_is_in_it():
    answer = serve._answer("ü\n", 1, ['{"name":"\udc80"}'], "\udcff\n" * 9000)
    assert answer.endswith(b"\n") and answer.count(b"\n") == 1 and len(answer) < LINE
    found = json.loads(answer.decode())
    assert (found["id"], found["code"], found["rows"]) == ("ü\n", 1, [{"name": "\udc80"}])


def every_verb(parser, path=""):
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                yield from every_verb(inner, f"{path} {verb}".strip())


def test_every_name_of_a_container_is_held_against_the_names():
    for path, parser in every_verb(dre_app.make_parser()):
        for action in parser._actions:
            if action.metavar in ("NAME", "NEW"):
                assert path == "" or action.dest in serve.NAMED, f"{path}: {action.dest} is not in serve.NAMED"


def test_what_has_no_end_is_marked():
    endless = {path for path, parser in every_verb(dre_app.make_parser()) if parser.get_default("endless")}
    assert endless >= {"console", "log", "stat"}
    verbs = {path for path, _ in every_verb(dre_app.make_parser())}
    assert endless >= {"top"} & verbs

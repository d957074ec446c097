# SPDX-License-Identifier: Apache-2.0
"""The demonstration judges by what was measured: made-up request logs and events must give the right verdict."""

import hashlib
import json
import os
import pathlib
import sys
import tarfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "demo"))

from demolib import answers, delta, forgery, load, verdict  # noqa: E402
from demolib.answers import Request  # noqa: E402
from demolib.batch import Batch  # noqa: E402
from demolib.memory import Memory  # noqa: E402
from demolib.overload import Overload  # noqa: E402

STEP = 60 / 2500


def request(n, took=0.01, status=200, kind="cd", order=None, release="v1", start=1000.0):
    due = start + n * STEP
    return Request(n, kind, due, due, due + took, status, release, order, None)


def run(count, bad=(), **kwargs):
    """*count* requests by schedule, those in *bad* slow."""
    return [request(n, took=0.5 if n in bad else 0.01, **kwargs) for n in range(count)]


def test_slow_counts_from_when_a_request_was_due():
    late = Request(0, "cd", 10.0, 10.25, 10.31, 200, "v1", None, None)
    assert late.slow and not late.good
    assert not request(0, took=0.3).slow
    assert request(0, took=0.3001).slow


@pytest.mark.parametrize("status", [None, 201, 404, 500, 502, 503])
def test_a_page_that_is_not_200_has_failed(status):
    assert request(0, status=status).failed


@pytest.mark.parametrize(
    "status, order, failed", [(201, 7, False), (201, None, True), (200, 7, True), (None, None, True)]
)
def test_an_order_needs_201_and_its_number(status, order, failed):
    assert request(0, kind="order", status=status, order=order).failed is failed


def test_first_bad_may_have_been_due_just_before_but_not_over_before():
    requests = run(100, bad={10, 40, 41})
    assert answers.first_bad(requests, requests[35].due).n == 40
    assert answers.first_bad(requests, requests[40].due + 0.2).n == 40  # under way at the deployment
    assert answers.first_bad(requests, requests[41].done + 0.1) is None
    assert answers.first_bad([*requests, request(100, status=503)], requests[41].done).n == 100


def test_restored_is_the_first_good_request_of_ten_seconds():
    requests = run(1200, bad={100, 400})
    # The stretch from 101 to 399 is 7 s long and does not count.
    assert answers.restored(requests, requests[100].due) == requests[401].due


def test_restored_needs_the_whole_span():
    span = int(10 / STEP) + 1
    enough = run(102 + span, bad={100})
    assert answers.restored(enough, enough[100].due) == enough[101].due
    assert answers.restored(enough[:-2], enough[100].due) is None


def test_restored_does_not_trust_a_gap():
    requests = run(800, bad={100})
    gap = [r for r in requests if not 200 <= r.n < 300]  # 2.4 s without any request
    assert answers.restored(gap, requests[100].due) == requests[300].due
    assert answers.restored([r for r in requests if r.n < 102 or r.n == 799], requests[100].due) is None


def test_a_failed_request_breaks_the_span_as_a_slow_one_does():
    requests = run(800, bad={100})
    requests[300] = request(300, status=502)
    assert answers.restored(requests, requests[100].due) == requests[301].due


def test_parse_orders_by_due_and_leaves_out_a_half_line():
    lines = [json.dumps(vars(r)) for r in (request(2), request(1))]
    parsed = answers.parse("\n".join([*lines, lines[0][:20]]))
    assert [r.n for r in parsed] == [1, 2]


def test_orders_are_the_acknowledged_ones():
    requests = [request(0, kind="order", status=201, order=5), request(1, kind="order", status=None)]
    assert answers.orders(requests) == [5]


def event(type, at, **data):
    return {"time": verdict_stamp(at), "source": "/host:h", "type": type, "data": data}


def verdict_stamp(at):
    return f"1970-01-01T{int(at) // 3600:02d}:{int(at) // 60 % 60:02d}:{at % 60:06.3f}Z"


def facts(recognised=1002.9, accepted=1003.2, bad=range(100, 160), drop=()):
    """A run in which the release comes at request 95 and hurts from request 100 (1002.4) to 159."""
    requests = [
        request(
            n,
            took=0.5 if n in bad else 0.01,
            kind="order" if n % 10 == 0 else "cd",
            status=201 if n % 10 == 0 else 200,
            order=n,
        )
        for n in range(900)
    ]
    overload = event("shop.overload", recognised - 0.2)
    evidence = [
        event("shop.release", 1002.3),
        event("watch.raised", 1002.7, id="slow"),
        overload,
        event("script.step.done", 1003.0, action="limit"),
        event("script.step.done", 1003.8, action="undo"),
        event("script.response.done", 1005.0, restored=True),
    ]
    evidence = [one for number, one in enumerate(evidence) if number not in drop]
    spool = [event("app.undo.accepted", accepted)] if accepted else []
    return Overload(requests, evidence, spool, [(recognised, overload)] if recognised else [], 1002.28)


def test_a_good_run_passes():
    checks = [*verdict.times(facts()), *verdict.requests(facts()), *verdict.steps(facts())]
    assert all(check.ok for check in checks), [str(check) for check in checks if not check.ok]
    assert "after 0.50 s" in str(checks[1]) and "after 0.30 s" in str(checks[2]) and "after 0.64 s" in str(checks[3])


@pytest.mark.parametrize(
    "changed, failing",
    [
        ({"recognised": 1003.5}, "overload recognised"),
        ({"accepted": 1004.0}, "undo accepted"),
        ({"accepted": None}, "undo accepted"),
        ({"bad": range(100, 900)}, "service restored"),
        ({"bad": ()}, "the release overloaded the shop"),
    ],
)
def test_each_promise_about_time_can_fail(changed, failing):
    assert failing in [check.name for check in verdict.times(facts(**changed)) if not check.ok]


@pytest.mark.parametrize("missing", range(6))
def test_every_step_must_be_evidence(missing):
    assert not verdict.steps(facts(drop=[missing]))[0].ok


def test_the_aim_is_printed_and_decides_nothing():
    late = facts(bad=range(100, 400))
    check = next(check for check in verdict.times(late) if check.name == "service restored")
    assert check.ok and "MISSED" in check.detail


@pytest.mark.parametrize(
    "without, changed, code",
    [
        ("sec", {"accepted": None}, 1),
        ("sec", {}, 2),
        ("sec", {"accepted": None, "bad": ()}, 2),
        ("release", {"accepted": None, "bad": ()}, 1),
        ("release", {"accepted": None}, 2),
    ],
)
def test_a_part_left_out_must_be_the_reason(without, changed, code):
    assert verdict.left_out(without, facts(**changed))[0] == code


def by_schedule(count, bad):
    """*count* requests from 1000.0 on, every tenth of them an order, those in *bad* slow."""
    kinds = ({"kind": "order", "status": 201} if n % 10 == 0 else {} for n in range(count))
    return [request(n, took=0.5 if n in bad else 0.01, order=n, **kind) for n, kind in enumerate(kinds)]


def batch(stopped=1010.0, drop=(), **kwargs):
    """A run in which a job starts at 1002.3, hurts from request 100 (1002.4) on, and is stopped."""
    until = stopped or 1012.0
    bad = [n for n in range(100, 900) if 1000 + n * STEP < until]
    evidence = [
        event("app.started", 1002.3, name="batch-report"),
        event("watch.raised", 1004.8, id="slow"),
        event("script.run.output", 1006.0, output="stopped batch-report\n"),
        event("script.step.done", 1006.5, action="run"),
        event("script.response.done", 1007.0, restored=True),
    ]
    evidence = [one for number, one in enumerate(evidence) if number not in drop]
    spool = [event("app.stopped", 1002.5, name="batch-feed")]
    spool += [event("app.stopped", stopped, name="batch-report")] if stopped else []
    return Batch(by_schedule(900, bad), evidence, spool, [], 1002.29)


def test_a_batch_job_is_stopped_in_time_or_not_and_another_one_does_not_count():
    assert all(check.ok for check in [*verdict.times(batch()), *verdict.requests(batch()), *verdict.steps(batch())])
    assert "after 7.60 s (at most 10 s: met)" in str(verdict.times(batch())[1])
    assert "MISSED" in str(verdict.times(batch(stopped=1013.0))[1])
    assert not batch(stopped=None).answered() and not verdict.times(batch(stopped=None))[1].ok


@pytest.mark.parametrize("missing", range(5))
def test_every_step_against_a_batch_job_must_be_evidence(missing):
    assert not verdict.steps(batch(drop=[missing]))[0].ok


def memory(web=1010.0, bad=range(190, 250), full=1007.0):
    """A run in which the memory is over its limit from 1006 on, and both apps start anew."""
    usage = [verdict.Usage(1000.0 + n, "shop-app", 20.0, 80.0, 200 + 15 * n, 320) for n in range(10)]
    raised = event("watch.raised", full, id="full")
    spool = [raised, event("app.started", 1009.0, name="shop-app"), event("app.started", web, name="shop-web")]
    done = [
        event("script.step.done", 1009.0 + n, action="restart", of=of) for n, of in enumerate(("shop-app", "shop-web"))
    ]
    evidence = [raised, event("script.run.output", 1008.0, output=""), *done]
    evidence.append(event("script.response.done", 1011.0, restored=True))
    return Memory(by_schedule(900, bad), evidence, spool, [], 1001.0, usage=usage)


def test_full_memory_counts_from_the_first_sample_over_the_limit_to_the_answers_after_both_restarts():
    good = memory()
    assert all(check.ok for check in [*verdict.times(good), *verdict.requests(good), *verdict.steps(good)])
    assert good.over == 1006.0 and 1010.0 <= good.green < 1010.1
    assert good.promises()[0].took == pytest.approx(4.0, abs=0.1)
    late = memory(bad=range(190, 400))
    assert late.green > 1009.5 and not memory(bad=range(190, 500)).promises()[0].check.ok
    assert not memory(web=1006.5).answered()  # a start from before it was full


def test_failures_outside_the_overload_fail():
    good = facts()
    good.requests[20] = request(20, status=502, kind="order")
    assert not [check for check in verdict.requests(good) if check.name == "requests failed"][0].ok


def test_too_few_requests_or_orders_fail():
    thin = facts()
    thin = Overload(thin.requests[::2], thin.evidence, thin.spool, thin.arrivals, thin.began)
    assert not verdict.requests(thin)[0].ok
    none = facts()
    none = Overload([r for r in none.requests if r.kind != "order"], none.evidence, none.spool, none.arrivals, 1002.28)
    assert not verdict.requests(none)[1].ok


def test_the_load_understands_answers_and_refuses_broken_ones():
    answer = b"HTTP/1.1 201 Created\r\nLocation: /order/17\r\nX-Release: v2\r\nContent-Length: 2\r\n\r\nok"
    assert load.understand(answer) == {"status": 201, "release": "v2", "order": 17}
    for broken in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", b"HTTP/1.1 200 OK\r\n", b"SSH-2.0\r\n\r\n"):
        with pytest.raises(ValueError):
            load.understand(broken)


def test_delta_and_archive_have_the_same_digest_until_something_differs(tmp_path):
    tree = tmp_path / "delta"
    (tree / "srv/shop").mkdir(parents=True)
    (tree / "srv/shop/wsgi.py").write_text("one")
    os.symlink("shop", tree / "srv/current")
    with tarfile.open(tmp_path / "delta.tar", "w") as tar:
        tar.add(tree, ".")
    saved = delta.of_archive(tmp_path / "delta.tar")
    assert delta.of_directory(tree) == saved
    before = os.stat(tree / "srv/shop/wsgi.py")
    (tree / "srv/shop/wsgi.py").write_text("two")
    os.utime(tree / "srv/shop/wsgi.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert delta.of_directory(tree) != saved
    (tree / "srv/shop/wsgi.py").write_text("one")
    os.utime(tree / "srv/shop/wsgi.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert delta.of_directory(tree) == saved
    os.chmod(tree / "srv/shop", 0o700)
    assert delta.of_directory(tree) != saved


def test_every_forgery_differs_from_the_truth_in_one_input_or_in_what_is_trusted():
    sha = [hashlib.sha256(bytes([n])).digest() for n in range(3)]
    code = [forgery.base64.b64encode(value).decode() for value in sha]
    header = forgery.base64.b64encode(b"dre-entry/v1\ntime 2026-01-01T00:00:00.000Z\nseq 1\n").decode()
    note = f"log\n3\n{code[2]}\ntime t\n\n— log {code[0]}\n— log {code[1]}\n"
    receipt = f"c2sp.org/tlog-proof@v1\nextra {header}\nindex 1\n{code[0]}\n{code[1]}\n\n{note}".encode()
    pem = f"-----BEGIN CERTIFICATE-----\n{code[0]}\n-----END CERTIFICATE-----\n".encode()
    true = forgery.Case("true", pem, pem + pem.replace(code[0].encode(), code[1].encode()), receipt, b"octets")
    cases = list(forgery.cases(true, b"another root", b"another chain"))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for word in (
        "record",
        "header",
        "path, hash 1",
        "path, hash 2",
        "tree head",
        "signature 2",
        "certificate 2",
        "empty",
    ):
        assert any(word in name for name in names), word
    for case in cases:
        parts = [part for part in ("root", "chain", "receipt", "octets") if getattr(case, part) != getattr(true, part)]
        assert len(parts) == (2 if case.name == "another root and its chain" else 1), case.name

# SPDX-License-Identifier: Apache-2.0
"""dscript: check, deploy and run scripts; show what was done and what is in force."""

import argparse
import contextlib
import json
import math
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dre import cli, files
from dre.conf import Conf
from dre.errors import FAILED, DreError, MissingError, NotFoundError, NotPermittedError, TimedOutError, UsageError

LOCK = "dscript-run"
Say = Callable[[str], None]


def make_parser() -> argparse.ArgumentParser:
    """The parser of dscript."""
    from dscriptlib.cmd import covering, deploying, serving

    parser = cli.parser("dscript", "Answer events by scripts that were agreed beforehand.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    check = cli.verb(verbs, "check", check_files, "say what is wrong with scripts: 0 nothing, 1 findings")
    check.add_argument("--case", metavar="CASE", type=Path, help="a D-Case, whose nodes the goals must be")
    check.add_argument("files", metavar="FILE", nargs="+", type=Path)
    explained = cli.verb(verbs, "explain", explain_file, "say in plain sentences what a script does")
    explained.add_argument("--lang", choices=("en", "ja"), default="en", help="the language (default: en)")
    explained.add_argument("file", metavar="FILE", type=Path)
    graph = cli.verb(verbs, "graph", draw_file, "draw what leads to what in a script")
    graph.add_argument(
        "--format", choices=("svg", "dot"), default="svg", help="svg, by graphviz, or dot (default: svg)"
    )
    graph.add_argument("--lang", choices=("en", "ja"), default="en", help="the language (default: en)")
    graph.add_argument("file", metavar="FILE", type=Path)
    simulate = cli.verb(verbs, "simulate", simulate_files, "print what scripts would decide about recorded events")
    simulate.add_argument("--events", metavar="FILE", required=True, type=Path, help="event lines, or a journal")
    simulate.add_argument("--fail", metavar="ACTION", action="append", default=[], help="suppose that ACTIONs fail")
    simulate.add_argument("--answer", choices=("approve", "refuse"), help="suppose that a person answers so")
    simulate.add_argument("--after", metavar="TIME", default="1h", help="go on so long after the last event (1h)")
    simulate.add_argument("files", metavar="SCRIPT", nargs="*", type=Path)
    deploying.add(verbs)
    serving.add(verbs)
    covering.add(verbs)
    run = cli.verb(verbs, "run", run_engine, "run the engine in the foreground, with the deployed scripts or FILEs")
    run.add_argument("files", metavar="FILE", nargs="*", type=Path)
    run.add_argument("--dry-run", action="store_true", help="print what would be done instead of doing it")
    run.add_argument("--user", metavar="NAME", help="as root: decide as this user; a process that stays root acts")
    approve = cli.verb(
        verbs, "approve", approve_request, "answer the question of an ask step, or put in force a script"
    )
    approve.add_argument("request", metavar="REQUEST", help="what notify.log names, or deploy --key printed")
    approve.add_argument("--refuse", action="store_true", help="answer no")
    approve.add_argument("--key", metavar="PEM", type=Path, help="sign a script with the key of a registered person")
    approve.add_argument("--text", default="", help="why, for the evidence")
    ack = cli.verb(verbs, "ack", acknowledge, "note that a person has taken notice")
    ack.add_argument("request", metavar="REQUEST", help="what notify.log names")
    ack.add_argument("--text", default="", help="what is done about it, for the evidence")
    cli.verb(verbs, "history", show_history, "print what was done, from the journal")
    why = cli.verb(verbs, "why", explain_run, "say why something was done, and what came of it")
    why.add_argument("id", metavar="ID", help="of an event, a run or a request")
    cli.verb(verbs, "status", show_status, "print the scripts and what runs; 0 when the engine runs, else 1")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return cli.main(make_parser(), argv)


def check_files(ctx: cli.Context) -> int:
    """dscript check FILE…"""
    from dscriptlib import between, check, load

    found, scripts = [], []
    for path in ctx.args.files:
        script, findings = check.check(read(path, load), str(path))
        found += findings
        if script is not None:
            scripts.append((str(path), script))
    found += between.findings(scripts, containers(ctx, [script for _, script in scripts]))
    if ctx.args.case is not None:
        case = read(ctx.args.case, load)
        if len(case) > load.LIMIT:
            raise UsageError(f"{ctx.args.case}: longer than {load.LIMIT // 1024} KiB")
        found += between.goals(scripts, case.decode(errors="replace"), str(ctx.args.case))
    for finding in found:
        row = {"file": finding.file, "line": finding.at.line, "column": finding.at.column}
        if ctx.out.as_json:
            ctx.out.json({**row, "severity": finding.severity, "text": finding.text})
        else:
            ctx.out.line(str(finding))
    return FAILED if found else 0


def _script(ctx: cli.Context, path: Path) -> Any:
    """The script in *path*; its errors go to stderr, then None."""
    from dscriptlib import check, load

    script, findings = check.check(read(path, load), str(path))
    if script is None:
        sys.stderr.write("".join(f"{finding}\n" for finding in findings))
    return script


def explain_file(ctx: cli.Context) -> int:
    """dscript explain FILE"""
    from dscriptlib import explain

    script = _script(ctx, ctx.args.file)
    if script is None:
        return FAILED
    for line in explain.explain(script, ctx.args.lang):
        ctx.out.line(line) if not ctx.out.as_json else ctx.out.json({"text": line})
    return 0


def draw_file(ctx: cli.Context) -> int:
    """dscript graph FILE"""
    from dscriptlib import graph

    script = _script(ctx, ctx.args.file)
    if script is None:
        return FAILED
    text = graph.dot(script, ctx.args.lang)
    if ctx.args.format == "svg":
        from dre import run

        try:
            text = run.run(["dot", "-Tsvg"], stdin=text.encode()).stdout.decode()
        except MissingError:
            raise MissingError("dot is not installed: apt-get install graphviz, or say --format dot") from None
    ctx.out.stream.write(text)
    return 0


def simulate_files(ctx: cli.Context) -> int:
    """dscript simulate --events FILE [SCRIPT…]"""
    from dscriptlib.cmd import simulating

    return simulating.simulate_files(ctx)


def containers(ctx: cli.Context, scripts: Sequence[Any]) -> dict[str, list[str]]:
    """The containers of this host, of the sorts that *scripts* name; nothing where they cannot be listed."""
    from dre import run

    named = {step.container[0] for script in scripts for response in script.responses for step in response.steps
             if step.container}  # fmt: skip
    here: dict[str, list[str]] = {}
    for key, program in (("of", "dre-app"), ("system", "dre-sys")):
        if key in named:
            options = ["--config", ctx.args.config] if ctx.args.config else []
            # Whoever may not list them, or has no such containers, can still check what is written.
            with contextlib.suppress(DreError):
                rows = run.run([program, *options, "list", "--json"], timeout=20.0).stdout.splitlines()
                here[key] = [json.loads(row)["name"] for row in rows]
    return here


def read(path: Path, load: Any) -> bytes:
    """The octets of a file named by the user: one that cannot be read is a mistake in the call, not a finding."""
    try:
        octets: bytes = load.read(path)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return octets


# --- run ---


def run_engine(ctx: cli.Context) -> int:
    """dscript run [FILE…]"""
    from dscriptlib import answers, engine, privilege, store
    from dscriptlib.doer import Doer
    from dscriptlib.fifo import Fifo
    from dscriptlib.follower import Once

    def say(text: str) -> None:
        ctx.say(text)
        sys.stderr.flush()

    dry = ctx.args.dry_run
    account = privilege.account(ctx.args.user) if ctx.args.user and not dry else None
    with _alone(ctx.conf), contextlib.ExitStack() as stack:
        given = engine.scripts(ctx.args.files)
        if not dry:
            if given:
                from dscriptlib import versions  # late: it loads what checks signatures
            for script, octets in given:
                versions.require(ctx.conf, script)
                store.keep(ctx.conf, script, octets)
                store.watch(ctx.conf, script)
        only = [script for script, _ in given] or None
        directory = journal_directory(ctx.conf)
        if dry:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dscript-")))
        doer, hands = Doer(ctx.conf, ctx.args.config, dry), None
        if account is not None:
            from dscriptlib import hands as root  # late: it loads what checks signatures

            control = stack.enter_context(root.start(ctx.conf, ctx.args.config, only or ()))
            doer, hands = root.Caller(ctx.conf, ctx.args.config, control), control.fileno()
        fifo = Fifo(ctx.conf.monitor_pipes[0], say)
        stack.callback(fifo.close)
        if account is not None:
            privilege.drop(account, directory, answers.directory(ctx.conf))
        journal, followers = _memory(ctx.conf, directory, Once(say), doer)
        if journal.damaged:
            say(f"{directory}: ignoring {journal.damaged} damaged records; what they told of is not repeated")
        made = engine.Engine(ctx.conf, journal, doer, followers, _dry_voice(ctx, say) if dry else say, only, hands)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: made.stop())
        for follower in followers:
            follower.start()
        made.run(fifo)
        for follower in followers:
            follower.stop(3.0)
    return 0


def _dry_voice(ctx: cli.Context, say: Say) -> Say:
    """What would be done is the data of a dry run."""

    def voice(text: str) -> None:
        ctx.out.line(text)
        ctx.out.stream.flush()

    return voice


@contextlib.contextmanager
def _alone(conf: Conf) -> Iterator[None]:
    """One engine per host: two would share the events of one FIFO between them."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(conf.core_run_dir / "lock" / LOCK, timeout=1.0))
        except TimedOutError:
            raise DreError("another dscript run is at work") from None
        yield


def journal_directory(conf: Conf) -> Path:
    return conf.core_state_dir / "script" / "journal"


def _memory(conf: Conf, directory: Path, complain: Say, doer: Any) -> tuple[Any, list[Any]]:
    """The journal, and the followers to the D-Box and to the monitor with what they have not handed on yet."""
    from dscriptlib import journal
    from dscriptlib.follower import Follower

    made = journal.Journal(directory)
    if doer.dry:
        return made, []
    box = Follower(
        directory / "recorded", doer.record, doer.drain, lambda text: complain(f"D-Box: {text}; records wait")
    )
    monitor = Follower(directory / "sent", doer.send, lambda: None, complain)
    for old in journal.records(directory, min(box.mark, monitor.mark)):
        if "line" in old and old["n"] > box.mark:
            box.hand(old["n"], old["line"].encode())
        if "send" in old and old["n"] > monitor.mark:
            monitor.hand(old["n"], old["send"].encode())
    return made, [box, monitor]


# --- what persons say ---


def approve_request(ctx: cli.Context) -> int:
    """dscript approve REQUEST"""
    if "-" not in ctx.args.request:
        from dscriptlib.cmd import deploying

        return deploying.approve_script(ctx)
    if ctx.args.key is not None:
        raise UsageError("--key is for scripts; to answer a question you need none")
    _requested(ctx, "ask")
    _answer(ctx, "refused" if ctx.args.refuse else "approved")
    return 0


def acknowledge(ctx: cli.Context) -> None:
    """dscript ack REQUEST"""
    _requested(ctx, None)
    _answer(ctx, "acknowledged")


def _requested(ctx: cli.Context, action: str | None) -> None:
    """Whether the journal knows the request, and whether its answer is still waited for."""
    from dscriptlib import journal

    states: dict[str, Any] = {}
    asked: dict[str, Any] | None = None
    for record in journal.records(journal_directory(ctx.conf)):
        states.update(record.get("states", {}))
        if record["kind"] == "intent" and record["request"] == ctx.args.request:
            asked = record
    if asked is None:
        raise NotFoundError(f"{ctx.args.request}: no such request in the journal")
    if action is None:
        return
    runs = states.get(asked["script"], {}).get("runs", {})
    if asked["action"] != action:
        raise DreError(f"{ctx.args.request}: {asked['action']} asks nothing; to take notice: dscript ack")
    run = runs.get(asked["run"])
    at_it = run is not None and (run["step"] + 1, run["phase"]) in ((asked["step"], "act"), (asked["step"], "ask"))
    if not at_it or (run["deadline"] or math.inf) <= time.time():  # the engine may be away, but not the time
        raise DreError(f"{ctx.args.request}: it is over, the answer would come too late")


def text(ctx: cli.Context) -> str:
    """The sentence of --text. Raises UsageError."""
    given = str(ctx.args.text)
    if len(given) > 300 or not given.isprintable():
        raise UsageError("--text: at most 300 printable characters")
    return given


def _answer(ctx: cli.Context, word: str) -> None:
    from dscriptlib import answers

    said = text(ctx)
    try:
        answers.give(ctx.conf, ctx.args.request, word, said)
    except PermissionError:
        raise NotPermittedError("only root and the user of the engine may answer") from None


# --- history and status ---

HISTORY: list[cli.Column] = [
    ("TIME", "time", 24),
    ("SCRIPT", "script", 12),
    ("RESPONSE", "response", 12),
    ("STEP", "step", 4),
    ("OUTCOME", "outcome", 8),
    ("SECONDS", "duration", 7),
    ("ARGV", "command", 0),
]


def show_history(ctx: cli.Context) -> None:
    """dscript history"""
    for row in _actions(journal_directory(ctx.conf)):
        if ctx.out.as_json:
            ctx.out.json(row)
        else:
            ctx.out.row({**row, "command": shlex.join(row["argv"])}, HISTORY)


def _actions(directory: Path) -> Iterator[dict[str, Any]]:
    """Each action in the order of their ends; those without an end come last."""
    from dscriptlib import journal

    open_: dict[str, dict[str, Any]] = {}
    for record in journal.records(directory):
        if record["kind"] == "intent":
            row = {key: record[key] for key in ("time", "script", "response", "run", "step", "phase", "argv")}
            open_[record["request"]] = {**row, "request": record["request"], "outcome": "unknown", "duration": None}
        elif record["kind"] == "outcome" and record["request"] in open_:
            found = open_.pop(record["request"])
            outcome = {"outcome": "failed" if record["error"] else "done", "duration": record["seconds"]}
            yield {**found, **outcome, **({"error": record["error"]} if record["error"] else {})}
    yield from open_.values()


def explain_run(ctx: cli.Context) -> None:
    """dscript why ID"""
    from dscriptlib import journal, why

    rows = list(why.reasons(journal.records(journal_directory(ctx.conf)), ctx.args.id))
    if not rows:
        raise NotFoundError(f"{ctx.args.id}: the journal knows no such event, run or request")
    for row in rows:
        if ctx.out.as_json:
            ctx.out.json(row)
        else:
            for line in why.sentences(row):
                ctx.out.line(cli.harmless(line))


def show_status(ctx: cli.Context) -> int:
    """dscript status"""
    from dscriptlib import journal, store

    states = journal.states(journal_directory(ctx.conf))
    running = _engine_runs(ctx.conf)
    for path in store.deployed(ctx.conf):
        state = states.get(path.stem, {})
        row = {
            "name": path.stem,
            "engine": "running" if running else "stopped",
            "version": state.get("sha256"),
            "raised": sorted(state.get("raised", {})),
            "runs": sorted(run["response"] for run in state.get("runs", {}).values()),
            "waiting": sorted(later["response"] for later in state.get("later", [])),
            "asked": sorted(
                f"{run['id']}-{run['step']}-act" for run in state.get("runs", {}).values() if run["phase"] == "ask"
            ),
        }
        columns: list[cli.Column] = [("NAME", "name", 16), ("ENGINE", "engine", 8), ("RAISED", "raised", 12)]
        ctx.out.row(
            row,
            [
                *columns,
                ("RUNS", "runs", 12),
                ("WAITING", "waiting", 12),
                ("ASKED", "asked", 22),
                ("VERSION", "version", 64),
            ],
        )
    if not running:
        ctx.say("the engine does not run")
    return 0 if running else FAILED


def _engine_runs(conf: Conf) -> bool:
    path = conf.core_run_dir / "lock" / LOCK
    if not path.exists():
        return False
    try:
        with files.lock(path, timeout=0.0):
            return False
    except TimedOutError:
        return True

# SPDX-License-Identifier: Apache-2.0
"""The same rules and the same events for sec and for dre-correlate: a corpus, and rules and events made at random."""

import os
import pathlib
import random
import subprocess

from dre import event
from programs import ROOT, environment, program

CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.sec"))
START = 1795420800  # 2026-11-23T08:00:00Z
TICK = "x.tick"  # an event in each second, which no rule sees: sec looks at its clock when a line comes
# What sec makes itself is kept from the rules, and so are the ticks; the name of the FIFO is set as dre-monitor does.
PIPES = (
    "type=Single\ncontinue=EndMatch\nptype=RegExp\npattern=^SEC_\ncontext=SEC_INTERNAL_EVENT\ndesc=x\n"
    "action=assign %script -\n\n"
)
TICKS = f'type=Single\ncontinue=EndMatch\nptype=SubStr\npattern="type":"{TICK}"\ndesc=x\naction=none\n'


def line(time, source, type, sev=6, data="", id=None):
    """An event at *time*, seconds from START or since the epoch."""
    stamp = event.stamp(time if time > START else START + time)
    tail = f',"id":"{id}"' if id else ""
    return f'{{"time":"{stamp}","source":"{source}","type":"{type}","sev":{sev},"data":{{{data}}}{tail}}}'


def with_ticks(lines, end):
    """*lines* and a tick at the beginning of each second up to *end*, in order."""
    return sorted(lines + [line(second, "/host:x", TICK) for second in range(end)], key=lambda item: item[9:33])


def corpus_events(seed, count=400, seconds=150):
    """What the corpus has rules for."""
    some = random.Random(seed)
    made = []
    for n in range(count):
        time = some.randrange(seconds) + 0.1 + n / count * 0.8
        host = f"/host:h{some.randrange(3)}"
        kind = some.choice(["login", "login", "link", "link", "link", "request", "request", "other"])
        if kind == "login":
            type = some.choice(["login.failed"] * 5 + ["login.opened"])
            data = f'"user":"{some.choice(["bob", "root", "al$1", "50%%s"])}","address":"10.0.0.{some.randrange(1, 4)}"'
        elif kind == "link":
            type, data = some.choice(["link.down", "link.down", "link.up"]), f'"port":{some.randrange(1, 3)}'
        elif kind == "request":
            type = some.choice(["request.slow", "request.failed", "request.failed", "request.refused"])
            data = f'"path":"/shop/{some.choice(["cart", "pay"])}","status":{some.choice([500, 503, 404])}'
        else:
            type = some.choice(["maintenance.begin", "maintenance.end", "release", "app.cpu"])
            data = f'"version":"1.{some.randrange(9)}"'
        made.append(line(time, host, type, 5, data, f"e{n}"))
    return with_ticks(made, seconds + 40)


class Maker:
    """Rules and events at random.

    What is due in one second, and pairs that one event ends, happen in no order in sec: such actions keep apart.
    """

    FIRST = (
        ("RegExp", r'"source":"/host:(\w+)","type":"a\.up","sev":(\d)'),
        ("RegExp", r'"type":"(a|b)\.(up|down)"'),
        ("RegExp", r'host:(?<host>h\d).*"user":"([^"]*)"'),
        ("RegExp", r'(?i)"TYPE":"B\.FAIL"'),
        ("RegExp", r'"type":"[ab]\.\w+",.*"n":(\d+)'),
        ("NRegExp", r'"type":"(a|b)\.'),
        ("SubStr", '"type":"a.down"'),
        ("SubStr", "b."),
        ("NSubStr", "a.up"),
        ("TValue", "TRUE"),
        ("TValue", "FALSE"),
    )
    SECOND = (
        ("RegExp", r'"source":"/host:$1","type":"a\.down"'),
        ("RegExp", r'"type":"b\.(fail)".*'),
        ("RegExp", r'"user":"$2"'),
        ("NRegExp", "tick|up"),
        ("SubStr", 'host:$1","type":"a.down"'),
        ("SubStr", "b.fail"),
        ("NSubStr", "up"),
        ("TValue", "TRUE"),
    )
    CONTEXTS = ("D", "!D", "C_$1", "!C_$1", "C_h1 && !D", "C_h1 || D && C_h2", "(C_h1 || D) && !(C_h2)", "[!D]")

    def __init__(self, seed):
        self.some = random.Random(seed)

    def late(self, n):
        texts = (f"write %script T{n} $1 %s u=%u", f"write %script (t; {n} ${{1}} $$ %u)", "create E 3", "none")
        return "; ".join(self.some.choices(texts, k=2))

    def paired(self, n):
        texts = (
            f"write %script S{n} %1 %{{2}} $1 %+{{host}} %s u=%u",
            "create F_%1 3 (write %script end %s)",
            "none",
            "reset 0",
        )
        return "; ".join(self.some.choices(texts, (4, 2, 1, 1), k=2))

    def actions(self, n):
        some = self.some
        texts = [
            f"write %script R{n} $1 $2 ${{1}} $+{{host}} $$ %s u=%u",
            f"write %script (in; {n} %v %{{w}} %.hmsstr)",
            f"create C_$1 {some.randint(0, 6)}",
            f"create D {some.randint(1, 6)} (write %script end {n} %s u=%u $1)",
            f"set D {some.randint(1, 5)}",
            "set D - (write %script end of D %u; none)",
            f"add C_$1 e{n} $0",
            "copy C_$1 %w; write %script v=%v w=%w u=%u",
            "copy D %v",
            "empty D %w",
            "delete C_$1",
            "obsolete D",
            "assign %v x$1%%y",
            f"reset {some.choice(['0', '+1', '-1', '1', '2', '+9'])} {some.choice(['d', 'd $1', 'd $1 $2', '%s'])}",
            f"create R_$1 {some.randint(1, 3)} (reset d $1; write %script end {n} %u)",
            "reset",
        ]
        return "; ".join(some.choices(texts, k=some.randint(1, 3)))

    def rule(self, n, sets):
        some = self.some
        types = ["Single", "SingleWithSuppress", "SingleWithThreshold", "SingleWith2Thresholds", "Pair"]
        type = some.choice([*types, "PairWithWindow", "Suppress", *["Jump"] * sets])
        ptype, pattern = some.choice(self.FIRST)
        keys = {"type": type, "ptype": ptype, "pattern": pattern}
        if type != "Suppress" and some.random() < 0.8:
            keys["continue"] = some.choice(["TakeNext", "TakeNext", "DontCont", "EndMatch", "GoTo L"])
        if ptype == "RegExp" and some.random() < 0.2:
            keys["varmap"] = "host=1; q = 9"
        if some.random() < 0.4:
            keys["context"] = some.choice(self.CONTEXTS)
        if type == "Jump":
            keys.update(cfset=some.choice(["s1", "s2", "sx", "s$1", "s1 s2"]), constset=some.choice(["yes", "no"]))
        elif type != "Suppress":
            keys["desc"] = some.choice(["d", "d $1", "d $1 $2", f"d{n} $1 %"])
            keys["action"] = self.late(n) if type == "PairWithWindow" else self.actions(n)
            keys["window"] = some.randint(1, 8) if type != "Single" else None
        if "Threshold" in type:
            keys["thresh"] = some.randint(1, 4)
            keys["action2"] = self.late(n)
        if type == "SingleWith2Thresholds":
            keys.update(desc2="z $1", window2=some.randint(1, 5), thresh2=some.randint(0, 2))
        if type.startswith("Pair"):
            keys["ptype2"], keys["pattern2"] = some.choice(self.SECOND)
            keys.update(desc2="%1 $1 z", action2=self.paired(n))
            keys["continue2"] = some.choice(["TakeNext", "DontCont", "EndMatch"])
            keys["context2"] = some.choice([None, None, "D", "!D", "C_%1", "[!D]", "C_h1 || !D"])
            if type == "Pair" and some.random() < 0.2:
                keys["window"] = 0
        return "".join(f"{key}={value}\n" for key, value in keys.items() if value is not None) + "\n"

    def files(self):
        """The texts of one to three files."""
        count = self.some.choice([1, 1, 2, 3])
        made = []
        for file in range(count):
            options = f"type=Options\njoincfset=s{file} sx\nprocallin={self.some.choice(['no', 'yes'])}\n\n"
            rules = [self.rule(10 * file + n, count - 1) for n in range(self.some.randint(1, 6))]
            made.append((options if file else "") + "".join(rules) + "label=L\n\n" + TICKS)
        return made

    def events(self):
        some = self.some
        end, made = some.randint(20, 60), []
        for second in range(end):
            for _ in range(some.choice([0, 0, 1, 1, 2, 4])):
                n = len(made)
                data = f'"user":"{some.choice(["bob", "al$1", "50%%s", "x(y"])}","n":{n}'
                type = some.choice(["a.up", "a.down", "b.fail", "b.up"])
                source = f"/host:h{some.randint(1, 2)}"
                made.append(line(second + 0.1 + n / 1000, source, type, some.randint(0, 7), data, f"e{n}"))
        return with_ticks(made, end)


def write(directory, texts):
    """The files of *texts*, behind the one that keeps ticks from them."""
    paths = []
    for n, text in enumerate([TICKS, *texts]):
        paths.append(pathlib.Path(directory) / f"r{n}.sec")
        paths[-1].write_text(text)
    return paths


def sec_argv(directory, paths, *more):
    """The command line of sec, behind its program."""
    first = pathlib.Path(directory) / "-pipes.sec"
    first.write_text(PIPES)
    confs = [f"--conf={path}" for path in (first, *paths)]
    return [*confs, *more, "--intevents", "--intcontexts", "--nochildterm", "--debug=3", f"--log={directory}/sec.log"]


def by_sec(directory, paths, lines):
    """What the real sec writes, under a clock that shows the time of the events."""
    record = pathlib.Path(directory) / "record"
    record.write_text("".join(f"{item}\n" for item in lines))
    clock = ROOT / "tests" / "sec_clock.pl"
    done = subprocess.run(
        ["perl", clock, "/usr/bin/sec", str(START), *sec_argv(directory, paths, f"--input={record}", "--notail")],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "TZ": "UTC", "LC_ALL": "C"},
        timeout=60,
    )
    log = (pathlib.Path(directory) / "sec.log").read_text()
    assert done.returncode == 0 and "Rule in" not in log, done.stderr.decode() + log
    return done.stdout.decode().splitlines()


def by_dre(paths, lines, *more, **keys):
    """What dre-correlate writes."""
    done = subprocess.run(
        [program("dre-correlate"), *more, *paths],
        input="".join(f"{item}\n" for item in lines).encode(),
        capture_output=True,
        env=environment(),
        timeout=60,
        **keys,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()

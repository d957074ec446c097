# SPDX-License-Identifier: Apache-2.0
"""Every command line of the handbook and the README is one: the parsers accept command, verb, options and values.

So do settings, units, files, pages and events that they name exist, and the Japanese pages have the same lines.
"""

import importlib
import json
import os
import re
import subprocess
import sys

import handbook
import pytest
from conftest import DIRECTORIES, ROOT, environment
from dre import conf
from dre.errors import UsageError
from test_completion import COMMANDS

NIGHT = [
    {"time": "2026-11-27T01:00:00.000Z", "source": "/host:h7/app:web1", "type": "watch.raised", "sev": 4},
    {"time": "2026-11-27T01:00:09.000Z", "source": "/host:h7/app:web1", "type": "watch.cleared", "sev": 6},
]
PAGES = [*handbook.PAGES, ROOT / "README.md"]
OURS = {command: directory for directory, command in COMMANDS}
TOOLS = {path.stem for path in (ROOT / "libdaware/tools").glob("*.c")}
# Of others; each belongs to a package that Debian has, and none is ours to check.
OTHERS = {
    *("a2enconf", "a2enmod", "a2ensite", "add-apt-repository", "apt-get", "cat", "cp", "curl", "cut", "debsign", "df"),
    *("dput", "echo", "grep", "install", "ln"),
    *("journalctl", "make", "mv", "openssl", "printf", "sed", "service", "ssh", "ssh-keygen", "ssh-keyscan"),
    *("systemctl", "tee", "test", "virsh"),
}
# Blocks that nobody types as they stand, by page and first words, and what does what they say: tests, or what they run.
# There only names are others (of a host, a disk, a package mirror) than a reader has.
# A console is for a person at a terminal, as tests/vm/shell has it.
VERBS = {"dre-app", "dre-sys", "dre-bridge", "dre-rules", "dre-sysmon", "dre-monitor", "dscript"}
MIRROR = "packaging/check-purge"
ELSEWHERE = {
    "README.md": {
        "sudo apt-get install -y make && sudo make demo": ("tests/run", "tests/unit/test_demo_report.py"),
        "sudo dre-base": ("tests/system/test_base_image.py", "tests/vm/test_system.py"),
    },
    "containers.md": {
        "sudo dre-base --tree web": (
            "tests/system/test_base_tree.py",
            "tests/system/test_app_unprivileged.py",
            "tests/system/test_app_limits.py",
        ),
        "sudo dre-base": ("tests/system/test_base_image.py", "tests/vm/test_system.py", "tests/vm/shell"),
        "sudo dre-app top": ("tests/system/test_app_top.py",),
    },
    "evidence.md": {"sudo dbox-witness --ask": ("tests/system/test_dbox_anchors.py",)},
    "growing.md": {
        "sudo dre-sys migrate --live --shared-storage": ("tests/system/test_sys_migrate_shared.py",),
        "sudo apt-get install python3-pymysql": ("tests/system/test_dbox_galera.py",),
        "sudo dbox-witness --make-key": ("tests/system/test_dbox_anchors.py",),
        "sudo dbox-witness --ask": ("tests/system/test_dbox_anchors.py",),
        "dbox-get 7 --proof --anchored": (
            "tests/system/test_dbox_anchors.py",
            "tests/system/test_dbox_handbook.py",
            "tests/cli/test_dbox_verify.py",
        ),
        "sudo dbox-init --client syslog": ("tests/system/test_dbox_feeds.py", "tests/system/test_monitor_feeds.py"),
        "sudo cp /usr/share/sec-monitor/apache": ("tests/system/test_monitor_web.py",),
        "dre-event shop.release --source": ("tests/system/test_monitor_web.py", "tests/cli/test_dre_event.py"),
    },
    "install.md": {
        "sudo apt-get install -y make": ("packaging/install-from-repo",),
        "sudo install -d /etc/apt/keyrings": ("packaging/install-from-repo", MIRROR),
        "sudo apt-get update\nsudo apt-get install": (MIRROR, "tests/system/test_repository.py"),
        "sudo apt-get install libvirt": ("tests/vm/saved.py", MIRROR),
        "sudo apt-get install devscripts dput": ("tests/system/test_ubuntu_dependencies.py",),  # Launchpad is not ours
        "sudo add-apt-repository": ("tests/system/test_ubuntu_dependencies.py",),
        "sudo dre-check": ("tests/cli/test_dre_check.py", "tests/system/test_check_discovers.py"),
        "sudo systemctl enable --now dre-monitor": ("tests/vm/test_packages.py", "tests/system/test_init_scripts.py"),
        "sudo make soak": ("tests/run",),
        "sudo apt-get update\nsudo apt-get upgrade": (MIRROR,),
    },
    "migration.md": {"sudo dre-app migrate web5 host2": ("tests/vm/test_two_guests.py",)},
    "monitoring.md": {
        "sudo systemctl enable --now dre-monitor": ("tests/vm/test_packages.py", "tests/system/test_monitor_status.py"),
        "sudo dre-monitor run --detach": ("tests/cli/test_dre_monitor.py",),
        "sudo dre-event shop.release": ("tests/system/test_monitor_feeds.py", "tests/cli/test_dre_event.py"),
        "sudo cp /usr/share/doc/sec-monitor": ("tests/system/test_monitor_feeds.py",),
        "sudo dre-lms pay1": ("tests/vm/test_lms.py",),
        "sudo dre-foxykbd pay1": ("tests/vm/test_key_loggers.py",),
        "sudo cp /usr/share/doc/sysmon": ("tests/system/test_sysmon_service.py", "tests/system/test_init_scripts.py"),
        "sudo dre-sysmon io": ("tests/system/test_sysmon_io.py", "tests/cli/test_dre_sysmon.py"),
    },
    "network.md": {
        "echo 'DRE_BRIDGE_ADDRESS": ("tests/system/test_bridge.py",),
        "sudo dre-app create web2 --publish": ("tests/system/test_app_publish.py",),
        "sudo dre-check --discover": ("tests/system/test_check_discovers.py", "tests/system/test_bridge_uplink.py"),
        "sudo apt-get install udhcpc": ("tests/system/test_bridge_gives.py", "tests/vm/test_bridge.py"),
    },
    "scripts.md": {
        "sudo dscript status": ("tests/cli/test_dscript.py",),
        "sudo dscript rollback": ("tests/cli/test_dscript_deploy.py",),
        "sudo dre-app exec web1 -- timeout": (
            "tests/system/test_dscript_dbox.py",
            "tests/cli/test_dscript_why.py",
            "tests/cli/test_dscript_steps.py",
        ),
        "sudo dscript approve": ("tests/cli/test_dscript_steps.py",),
    },
    "undo.md": {"sudo apt-get install criu": ("tests/system/test_app_checkpoint.py", "tests/vm/test_checkpoint.py")},
}
ALL = [block for page in PAGES for block in handbook.blocks(page)]
SHELL = [block for block in ALL if block.kind.split()[:1] == ["sh"]]


def ids(block):
    return block.where


@pytest.fixture(scope="module")
def parsers():
    """The parser of each command of ours, made once."""
    made = {}
    kept = list(sys.path)
    sys.path[:0] = [str(ROOT / directory) for directory in DIRECTORIES]
    try:
        for command, directory in OURS.items():
            library = re.search(r"^LIB = (\S+)$", (ROOT / directory / "Makefile").read_text(), re.MULTILINE)
            name = f"{library[1] if library else 'dre'}.cmd.{command.replace('-', '_')}"
            made[command] = importlib.import_module(name).make_parser()
    finally:
        sys.path[:] = kept
    return made


def test_there_is_something_to_check():
    words = [words for block in SHELL for line in handbook.lines(block) for words in handbook.commands(line)]
    assert len(words) > 150
    named = {word[0] for word in words}
    assert {"dre-app", "dre-sys", "dre-bridge", "dre-check", "dre-base", "dscript", "dbox-init", "dbox-verify"} <= named


@pytest.mark.parametrize("block", SHELL, ids=ids)
def test_lines_are_accepted(block, parsers):
    assert subprocess.run(["bash", "-n", "-c", block.text], capture_output=True).returncode == 0
    for line in handbook.lines(block):
        for command, *words in handbook.commands(line):
            if command in OURS:
                try:
                    parsers[command].parse_args(words)
                except UsageError as error:
                    pytest.fail(f"{block.where}: {line}: {error}")
            else:
                assert command in OTHERS | TOOLS, f"{block.where}: {line}: what is {command}?"


@pytest.mark.parametrize("block", [block for block in SHELL if not block.kind.startswith("sh host")], ids=ids)
def test_who_is_not_root_finds_what_is_typed_without_sudo(block):
    """/usr/sbin is in root's path alone."""
    makefiles = [(ROOT / directory / "Makefile").read_text() for directory in DIRECTORIES]
    words = [re.search(r"^SBIN = (.*)$", text, re.MULTILINE) for text in makefiles]
    administrators = {name for found in words if found for name in found[1].split()}
    assert {"dre-app", "dre-rules", "dbox-init"} <= administrators
    for line in handbook.lines(block):
        for command, *_ in handbook.commands(line, before=()):
            assert command not in administrators, line


@pytest.mark.parametrize(
    "line", ["sudo dre-app creat web1", "dre-app limit web1 --cpus-max 3", "dbox-verify", "dre-sys"]
)
def test_a_wrong_line_is_found(line, parsers):
    """Else all that is accepted would prove nothing."""
    ((command, *words),) = handbook.commands(line)
    with pytest.raises(UsageError):
        args = parsers[command].parse_args(words)
        if getattr(args, "function", None) is None:
            parsers[command].error("a verb is missing")


def test_words_are_read_as_sh_reads_them():
    line = """id=$(sudo a --b "c d" | cut -d" " -f1) && e -- 'f;g' >h 2>>i; echo x | sudo tee -a /j"""
    words = [["a", "--b", "c d"], ["cut", "-d ", "-f1"], ["e", "--", "f;g"], ["echo", "x"], ["tee", "-a", "/j"]]
    found = list(handbook.commands(line))
    assert [one for one in words if one not in found] == []


@pytest.mark.parametrize(
    "name", ["README.md", "bench/README.md", "demo/README.md", "soak/README.md", "tests/vm/README.md"]
)
def test_what_is_called_within_a_sentence_can_be_called(name):
    """Targets of make, and our programs with their options."""
    text = (ROOT / name).read_text()
    found = [match.split() for match in re.findall(r"`((?:make|bench|demo|soak|packaging|tests)[ /][^`*]*)`", text)]
    assert found
    for command, *words in found:
        if command == "make":
            targets = [word for word in words if "=" not in word and words[0] != "-C"]
            done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            for word in words:
                if "=" in word:
                    assert re.search(rf"\b{word.partition('=')[0]}\b", _makes(words)), word
        else:
            assert os.access(ROOT / command, os.X_OK), command
            options = [word for word in words if word.startswith("--")]
            if options:
                told = subprocess.run(
                    [ROOT / command, "--help"], capture_output=True, text=True, env=environment()
                ).stdout
                assert [word for word in options if word not in told] == [], command


def _makes(words):
    """What make and the program that a target calls read."""
    called = {"demo": "demo/run", "soak": "soak/run", "check": "tests/run"}.get(words[0])
    return (ROOT / "Makefile").read_text() + ((ROOT / called).read_text() if called else "")


def test_a_block_that_no_test_types_names_what_does_the_same():
    """By page, in both directions; the blocks of the others are typed by tests that count them."""
    english = [block for block in SHELL if "/ja/" not in block.where]
    plain = [block for block in english if block.kind == "sh"]
    named = {(page, first): files for page, blocks in ELSEWHERE.items() for first, files in blocks.items()}
    found = {}
    for block in plain:
        page = block.where.partition(":")[0].rpartition("/")[2]
        keys = [key for key in named if key[0] == page and block.text.startswith(key[1])]
        assert keys, f"{block.where}: is typed by no test, and nothing is named that does the same"
        found[block] = max(keys, key=lambda key: len(key[1]))
    assert set(named) == set(found.values())
    for block, key in found.items():
        text = "".join((ROOT / name).read_text() for name in named[key])
        for line in handbook.lines(block):
            for command, *words in handbook.commands(line):
                wanted = [word for word in words[: words.index("--") if "--" in words else None] if word[:2] == "--"]
                if command in VERBS:
                    wanted.append(words[0])
                if command in OURS:
                    assert [word for word in wanted if word not in text] == [], f"{block.where}: {line}: {named[key]}"
    assert {block.kind for block in english} == {"sh", "sh run", "sh sys", "sh host1", "sh host2"}


@pytest.mark.parametrize("block", SHELL, ids=ids)
def test_services_are_ours(block):
    packages = {path.name for path in (ROOT / "debian").iterdir()}
    for line in handbook.lines(block):
        for command, *words in handbook.commands(line):
            names = [word for word in words if not word.startswith("-") and word != "2"]
            if command == "systemctl":
                assert names[0] in ("enable", "start", "restart", "reload", "status"), line
                names, ending = names[1:], "service"
            elif command == "service":
                names, ending = names[:1], "init"
            else:
                continue
            for name in set(names) - {"rsyslog", "apache2"}:
                assert any(item.endswith((f".{name}.{ending}", f"{name}.{ending}")) for item in packages), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page, tmp_path):
    text = page.read_text()
    for key in re.findall(r"\bDRE_[A-Z_]+[A-Z]\b", text):
        assert key in conf.KEYS or key.startswith(("DRE_EVENT", "DRE_FULL")), key
    for name, number in re.findall(r"\b((?:dre|dbox|daware|libdre|libdaware|dscript)[a-z.-]*)\(([1-8])\)", text):
        assert list(ROOT.glob(f"*/man/{name}.{number}.rst")), f"{name}({number})"
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for path in re.findall(r"/usr/share/[\w./-]*\w", text):
        assert list(ROOT.glob(_source(path))), path


def _source(path):
    """The pattern of the files in the tree that become *path*."""
    package, _, rest = path.removeprefix("/usr/share/").partition("/")
    if package == "doc":
        package, _, rest = rest.partition("/")
        return f"*/{rest.rstrip('/')}"
    return f"{package}/{rest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_events_that_a_page_names_are_emitted(page):
    code = "".join(path.read_text() for name in DIRECTORIES for path in (ROOT / name).rglob("*.py"))
    for name in re.findall(r"`((?:app|system|watch|monitor|dbox|script|sysmon)\.[a-z]+[a-z.-]*)`", page.read_text()):
        assert name in code or name.partition(".")[2] in code, name


@pytest.mark.parametrize("block", [block for block in ALL if block.kind == "yaml"], ids=ids)
def test_scripts_are_good(block, run, settings, tmp_path):
    (tmp_path / "shown.yaml").write_text(block.text)
    done = run("dscript", "--config", settings(DRE_APP_LXC_PATH=tmp_path / "lxc"), "check", tmp_path / "shown.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_lines_on_scripts_and_rules_do_what_they_say(settings, tmp_path):
    """As a reader without privilege would: what has not been agreed to yet changes nothing."""
    reader = handbook.Reader(tmp_path, settings(DRE_APP_LXC_PATH=tmp_path / "lxc"))
    (tmp_path / "web.yaml").write_text(next(block.text for block in ALL if block.kind == "yaml"))
    rows = [{**row, "data": {"script": "web", "id": "busy"}, "id": f"n{row['sev']}"} for row in NIGHT]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.jsonl").write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    making, taking, testing, installing = handbook.marked("monitoring.md")
    event = json.loads(reader.types(making))
    assert (event["type"], event["data"]) == ("shop.release", {"version": 1.8})
    reader.types(taking, {"/usr/share/sec-monitor": ROOT / "sec-monitor", "/var/lib/dre/spool/ingest": tmp_path / "in"})
    assert [line.split("\t")[2] for line in reader.types(testing).splitlines()] == ["script", "script"]
    (tmp_path / "etc/rules.d").mkdir(parents=True)  # as the package brings it
    assert "orders that take too long" in reader.types(installing)
    said = reader.types(handbook.marked("scripts.md")[0])
    assert "web1" in said and "digraph" in said and "80" in said


@pytest.mark.parametrize("page", sorted((handbook.HANDBOOK / "ja").glob("*.md")), ids=lambda page: page.name)
def test_the_japanese_page_has_the_same_lines(page):
    def told(path):
        return [(block.kind, handbook.lines(block)) for block in handbook.blocks(path)]

    english = handbook.HANDBOOK / page.name
    assert [(kind, lines) for kind, lines in told(page)] == [(kind, lines) for kind, lines in told(english)]


def test_the_index_has_every_manual_page_with_its_title():
    pages = {}
    for path in ROOT.glob("*/man/*.rst"):
        name, number, _ = path.name.rsplit(".", 2)
        pages[f"{name}({number})"] = re.search(r"^-+\n(.+)\n-+$", path.read_text(), re.MULTILINE)[1].strip()
    found = re.findall(r"^\| (\S+\(\d\)) \| (.*) \|$", (handbook.HANDBOOK / "commands.md").read_text(), re.MULTILINE)
    assert dict(found) == pages and len(found) == len(pages)


def test_no_chapter_is_left_out_of_the_contents():
    contents = (handbook.HANDBOOK / "README.md").read_text()
    there = {str(page.relative_to(handbook.HANDBOOK)) for page in handbook.PAGES} - {"README.md"}
    assert {name for name in there if f"({name})" not in contents} == set()


def test_a_wrong_script_is_found(run, settings, tmp_path):
    (tmp_path / "wrong.yaml").write_text("dscript: 1\nname: web\nresponses: [{id: a, when: nobody, steps: []}]\n")
    done = run("dscript", "--config", settings(DRE_APP_LXC_PATH=tmp_path / "lxc"), "check", tmp_path / "wrong.yaml")
    assert done.returncode == 1

# SPDX-License-Identifier: Apache-2.0
"""An app moves with its memory: its program goes on at the other host, or here when that cannot be."""

import json

from checkpoint_ground import Counting, need_criu
from migrate_ground import There

NAME, ADDRESS = "t-mvlive", "10.231.101.63"
# The two bridges of this one host have the same network here, so the program is asked from inside.
ASK = "import socket; s = socket.create_connection(('127.0.0.1', 8080)); s.sendall(b'?'); print(s.recv(99).decode())"


def ask(ground):
    return ground("exec", NAME, "--", "/usr/bin/python3", "-c", ASK).split()


def test_the_program_goes_on_there(run, settings):
    need_criu()
    allowed = ("--allow-privileged", "--allow-live")
    with Counting(run, settings, NAME, ADDRESS) as here, There(run, *allowed, network="10.231.101.1/24") as there:
        here.ask("kept-in-memory")
        before = ask(here)
        row = json.loads(here("migrate", "--json", "--live", "--ssh-config", there.ssh_config, NAME, "there"))
        assert (row["state"], row["ip"]) == ("running", [ADDRESS])
        assert row["down"] > 0
        after = ask(there)
        assert (after[0], after[1]) == ("2", "kept-in-memory")
        assert int(after[2]) >= int(before[2])
        lines = (there.lxc / NAME / "delta/lines").read_bytes()[: int(after[3])]
        assert [int(line) for line in lines.split()] == list(range(1, int(after[2]) + 1))
        here("status", NAME, code=3)
        assert there("checkpoint", "list", NAME) == ""


def test_refused_there_it_goes_on_here(run, settings):
    need_criu()
    with Counting(run, settings, NAME, ADDRESS) as here, There(run, "--allow-privileged") as there:
        here.ask("kept-in-memory")
        move = ("migrate", "--live", "--ssh-config", there.ssh_config, NAME, "there")
        assert "not taken here without --allow-live" in here(*move, code=4)
        assert "exclude each other" in here(*move[:2], "--as", "t-other", NAME, "there", code=2)
        assert here.mark() == "kept-in-memory"
        assert there("list") == ""


def test_a_failure_there_lets_it_go_on_here_with_its_memory(run, settings):
    need_criu()
    allowed = ("--allow-privileged", "--allow-live")
    with Counting(run, settings, NAME, ADDRESS) as here, There(run, *allowed, network="10.231.101.1/24") as there:
        here.ask("kept-in-memory")
        (there.place / "log").mkdir(exist_ok=True)
        (there.place / "log/app").write_text("a file where a directory has to be\n")
        here("migrate", "--live", "--ssh-config", there.ssh_config, NAME, "there", code=1)
        (there.place / "log/app").unlink()
        assert here.mark() == "kept-in-memory"
        assert here("checkpoint", "list", NAME) == ""
        assert there("list") == ""

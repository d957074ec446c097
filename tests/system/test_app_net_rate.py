# SPDX-License-Identifier: Apache-2.0
"""The rate of an app's link holds in both directions and is lifted again; `tc` and a counting socket are witnesses."""

import json
import os
import subprocess

import app_ground
import pytest
from dre import conf, lxcconfig, network
from dre.app import App

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME = "nrate1"
RATE = 2_000_000
# Octets per second, counted after the first 1.5 s: so much the kernel lets through at once.
RECEIVE = """
import socket, time
talk = socket.create_server(("", 5001)).accept()[0]
begun, count = time.monotonic(), 0
while time.monotonic() < begun + 3.5:
    length = len(talk.recv(65536))
    count += length if time.monotonic() > begun + 1.5 else 0
print(count // 2)
"""
SEND = """
import socket, sys, time
while True:
    try:
        talk = socket.create_connection((sys.argv[1], 5001))
        break
    except OSError:
        time.sleep(0.02)
try:
    while True:
        talk.sendall(b"x" * 65536)
except OSError:
    pass
"""


@pytest.fixture
def app(run, settings):
    with app_ground.Ground(run, settings) as ground:
        ground("create", NAME)
        ground("start", NAME)
        yield ground


def flow(sender, receiver, address):
    python = ["/usr/bin/python3", "-c"]
    taking = subprocess.Popen([*receiver, *python, RECEIVE], stdout=subprocess.PIPE)
    giving = subprocess.Popen([*sender, *python, SEND, address])
    try:
        return int(taking.communicate(timeout=30)[0])
    finally:
        for process in (taking, giving):
            process.kill()
            process.wait()


def test_both_directions(app):
    settings = conf.load(app.config)
    link = lxcconfig.link(settings, App(settings, NAME).spec())
    inside = ["lxc-attach", "-n", NAME, "--"]
    address = json.loads(app("status", NAME, "--json"))["ip"][0]
    network.set_rate(settings, link, RATE, RATE)
    try:
        shown = subprocess.run(["tc", "qdisc", "show", "dev", link], capture_output=True, check=True).stdout
        assert b"tbf" in shown and b"rate 16Mbit" in shown
        assert network.rates(settings, link) == (RATE, RATE)
        assert 0.8 * RATE < flow([], inside, address) < 1.1 * RATE
        assert 0.8 * RATE < flow(inside, [], "10.231.101.1") < 1.2 * RATE
    finally:
        network.set_rate(settings, link, None, None)
    assert network.rates(settings, link) == (None, None)
    assert flow([], inside, address) > 5 * RATE

# SPDX-License-Identifier: Apache-2.0
"""Scenario (4): a process hides in the payment system; it is cut off, kept for analysis, and put back to a good state.

The payment system is a virtual machine, and the root-kit the one of the tests of dre-lms. Needs libvirt, and some
minutes for the image the first time.
"""

import time
from collections.abc import Mapping, Sequence

from demolib import hypervisor
from demolib.journal import Event
from demolib.places import CONF, HERE, PAY, PAY_ADDRESS, SCRIPTS, SHOP, TREES
from demolib.programs import call, dre, listens, start, status, wait
from demolib.story import Say, Story
from demolib.verdict import Check, Facts, Promise, at

FOUND, ISOLATED, RESTORED = 5.0, 1.0, 60.0
IMAGE = "cdshop-pay"
PACKAGES = ("python3", "procps", "gcc", "make", "linux-headers-amd64")
KIT = HERE.parent / "tests/vm/lms_rootkit"
GOOD = "good"
BUILD = 'make -C "/lib/modules/$(uname -r)/build" M=/root/kit modules >/root/kit/log 2>&1'
# What hides has an ordinary name, and the module hides itself as well. It happens after a while, for an answer about it
# from inside would take longer than to find it.
LATER = 5.0
HIDE = """
setsid sleep 86400 </dev/null >/dev/null 2>&1 & it=$!
setsid sh -c "sleep {0:g}; insmod /root/kit/hider.ko pid=$it level=2 hide=1" </dev/null >/dev/null 2>&1 &
echo $it
"""
# It ends with QEMU, as for the return to a checkpoint, and then looks for the next one.
LOOK = """
trap 'kill $job; exit' TERM
while :; do
    dre-lms --config "$0" "$1" --interval 1s & job=$!
    wait $job
    sleep 1
done
"""


class Intruder(Facts):
    """What was measured of it."""

    @property
    def hidden(self) -> Event | None:
        """The finding."""
        return self.told("sysmon.hidden.process")

    @property
    def isolated(self) -> Event | None:
        return self.told("system.isolated")

    @property
    def rejoined(self) -> Event | None:
        return self.told("system.rejoined")

    @property
    def green(self) -> float | None:
        """When the first 10 s of good answers began after it was connected again."""
        return self.green_after(at(self.rejoined))

    def answered(self) -> bool:
        return self.rejoined is not None

    def harm(self) -> Check:
        return Check("a process hid in the payment system", self.hidden is not None)

    def promises(self) -> Sequence[Promise]:
        return [
            Promise("hidden process found", self.began, at(self.hidden), FOUND),
            Promise("system isolated after that", at(self.hidden), at(self.isolated), ISOLATED),
            Promise("restored and serving after that", at(self.isolated), self.green, RESTORED),
        ]

    def found(self) -> Mapping[str, Event | None]:
        steps = ("isolate", "checkpoint", "undo", "rejoin")
        return {
            "finding": self.entry("sysmon.hidden.process"),
            **{step: self.entry("script.step.done", action=step) for step in steps},
            "restored": self.restored,
        }

    def moments(self) -> Sequence[tuple[float | None, str]]:
        found = self.found()
        return [
            (at(self.hidden), "dre-lms: a process that its kernel denies"),
            (at(self.isolated), f"{PAY} is cut off"),
            (at(found["checkpoint"]), "its memory and disk are kept for analysis"),
            (at(found["undo"]), f"it is back at its checkpoint '{GOOD}', and nothing is hidden"),
            (at(self.rejoined), "it is connected again"),
            (at(self.restored), "script: all is well"),
        ]


class IntruderStory(Story):
    """Somebody builds a root-kit in the payment system, and hides a process of theirs with it."""

    title = "A process hides in the payment system: it is cut off, kept for analysis, and put back"
    script = SCRIPTS / "shop-intruder.yaml"
    facts = Intruder
    url = f"http://{PAY_ADDRESS}"
    rate = 120
    apps = ()
    patience = 240.0
    again = f"dre-sys {{conf}} exec {PAY} -- insmod /root/kit/hider.ko …; but first push and build it there"

    def __init__(self) -> None:
        self.number = ""  # of the process, inside

    def lay(self) -> None:
        hypervisor.need()

    def make(self, say: Say) -> None:
        TREES.mkdir(parents=True, exist_ok=True)
        call("dre-base", "--name", IMAGE, "--output", str(TREES), "--package", *PACKAGES, timeout=1800)
        say(f"image {IMAGE} is there")
        options = ["--base", str(TREES / IMAGE), "--memory", "512M", "--ip", f"{PAY_ADDRESS}/24"]
        dre("dre-sys", "create", PAY, *options)
        dre("dre-sys", "start", PAY, "--wait", "300", timeout=320)
        dre("dre-sys", "push", PAY, str(SHOP / "pay/pay.py"), "/root/pay.py")
        self._inside("systemd-run --quiet --unit=pay /usr/bin/python3 /root/pay.py")
        say(f"{PAY} runs, a system of its own")
        wait(lambda: listens(80, PAY_ADDRESS), 60, f"{PAY} on port 80")
        dre("dre-sys", "checkpoint", "save", PAY, GOOD, timeout=300)
        say(f"its memory and disk are saved as checkpoint '{GOOD}'")

    def set_up(self, say: Say) -> None:
        self._inside("mkdir -p /root/kit")
        for path in sorted(KIT.iterdir()):
            dre("dre-sys", "push", PAY, str(path), f"/root/kit/{path.name}")
        self._inside(BUILD)
        say("somebody has built a root-kit there")
        start("dre-lms", "/bin/sh", "-c", LOOK, str(CONF), PAY)

    def strike(self, without: str, note: Say) -> float:
        moment = time.time() + LATER
        self.number = self._inside(HIDE.format(LATER)).decode().strip()
        time.sleep(max(0.0, moment - time.time()))
        note(f"process {self.number} hides in {PAY}")
        return moment

    def checks(self, facts: Facts) -> list[Check]:
        saved = dre("dre-sys", "checkpoint", "list", PAY).decode().splitlines()
        clean = status("dre-lms", "--config", str(CONF), PAY).returncode
        boots = {request.release for request in facts.requests if request.release}
        told = facts.hidden["data"] if facts.hidden else {}
        views = told.get("views_missing", [])
        return [
            Check("the finding names it", str(told.get("pid")) == self.number, f"{told.get('comm')} {told.get('pid')}"),
            Check("what ps inside goes by did not have it", "idr" in views, f"missing in {', '.join(views)}"),
            Check("its state then is kept beside the good one", len(saved) == 2, f"{len(saved)} checkpoints"),
            Check("nothing is hidden any more", clean == 0, f"dre-lms ended with {clean}"),
            Check(
                "its memory goes on where the checkpoint was", len(boots) == 1, "the same run of its program answers"
            ),
        ]

    def _inside(self, command: str) -> bytes:
        return dre("dre-sys", "exec", PAY, "--timeout", "300", "--", "/bin/sh", "-c", command, timeout=320)

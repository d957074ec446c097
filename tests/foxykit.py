# SPDX-License-Identifier: Apache-2.0
"""A guest that was never booted, in a time of its own, and loggers in it: what typist.Guest is to them."""

import random


class Clock:
    """A time that passes only when somebody waits; what is planned happens meanwhile."""

    def __init__(self):
        self.now, self._plans = 0.0, []

    def __call__(self):
        return self.now

    def at(self, moment, what):
        self._plans.append((moment, len(self._plans), what))

    def sleep(self, seconds):
        end = self.now + seconds
        while due := [plan for plan in self._plans if plan[0] <= end]:
            first = min(due, key=lambda plan: plan[:2])
            self._plans.remove(first)
            self.now = max(self.now, first[0])
            first[2]()
        self.now = end

    def every(self, apart, what):
        """Again and again, from a moment on that nobody knows."""

        def again(moment):
            what()
            self.at(moment + apart, lambda: again(moment + apart))

        begin = random.Random(str(apart)).random() * apart
        self.at(begin, lambda: again(begin))


class Guest:
    """Its disk vda and its link tap0, and who heeds its keys."""

    def __init__(self, clock):
        self.clock, self.loggers, self.line, self.octets, self.reads = clock, [], "", 0, True
        self.count = dict.fromkeys(
            [("vda", "octets"), ("vda", "writes"), ("vda", "flushes"), ("tap0", "octets"), ("tap0", "packets")], 0
        )

    def press(self, keys):
        for key in keys:
            self.octets += 2 if self.reads else 0
            self.line = self.line[:-1] if key == 14 else self.line + "x"
            for logger in self.loggers:
                logger(key)

    def taken(self):
        return self.octets

    def output(self):
        return dict(self.count)

    def write(self, octets=4096, writes=1, flushes=0):
        """To its disk, at once."""
        for what, more in (("octets", octets), ("writes", writes), ("flushes", flushes)):
            self.count["vda", what] += more

    def send(self, octets):
        """Over its link."""
        self.count["tap0", "octets"] += octets
        self.count["tap0", "packets"] += 1


class Logger:
    """Keeps letters, up to *most* octets and *wait* seconds; then they go to *out*, *later* seconds after."""

    def __init__(self, guest, most=1, wait=None, later=0.0, out=None, each=1):
        self.guest, self.most, self.later, self.each, self.kept = guest, most, later, each, 0
        self.out = out or guest.write
        if wait:
            guest.clock.every(wait, self.flush)
        guest.loggers.append(self)

    def __call__(self, key):
        if key != 14:
            self.kept += self.each
            if self.kept >= self.most:
                self.flush()

    def flush(self):
        if self.kept:
            octets, self.kept = self.kept, 0
            if self.later:
                self.guest.clock.at(self.guest.clock.now + self.later, lambda: self.out(octets))
            else:
                self.out(octets)


def noise(guest, source, apart=5.0):
    """A daemon that logs, and a journal that is committed, now and then: bursts, and none of them of keys."""

    def burst():
        if source.random() < 0.3:
            for _ in range(source.randrange(1, 6)):
                guest.write(4096 * source.randrange(1, 9), 1, 1)
        if source.random() < 0.2:
            guest.send(source.randrange(60, 1500))

    guest.clock.every(apart, burst)

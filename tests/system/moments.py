# SPDX-License-Identifier: Apache-2.0
"""Moments at which to kill a command at work, though a busy host makes its run time shorter and longer as it goes.

They are drawn uniformly from what is held for the run time. A command that ends before its moment tells how long it
took, and no later moment is drawn until kills that hit have, step by step, let it be longer again.
"""

import random

SHARE, LEAST = 0.8, 0.5  # of the kills shall hit it at work: aimed at, and needed
GROWTH = 1.05  # with each kill that hit: some 0.9 of them do, of a command that always takes the same time


class Moments:
    """Counts the kills and those that hit: at least *wanted* kills, and more where few hit."""

    def __init__(self, run_time, wanted):
        self.run_time, self.wanted = run_time, wanted
        self.kills = self.hits = 0

    def draw(self):
        """The next moment, in seconds from the begin, or None: enough, for a small sample may be unlucky and grows."""
        if self.kills >= 3 * self.wanted or (self.kills >= self.wanted and self.hits >= SHARE * self.kills):
            return None
        self.kills += 1
        return random.uniform(0, self.run_time)

    def hit(self):
        """The command was at work at its moment."""
        self.hits += 1
        self.run_time *= GROWTH

    def missed(self, run_time):
        """The command took but *run_time* seconds, and so its moment came too late."""
        self.run_time = min(self.run_time, run_time)

    def judge(self):
        """Fail where the moments were wrong: then nothing was tested."""
        print(f"{self.hits} of {self.kills} kills hit it at work (within {self.run_time:.3f} s)")
        assert self.hits >= LEAST * self.kills, f"only {self.hits} of {self.kills} kills hit the command at work"

# SPDX-License-Identifier: Apache-2.0
"""Whether what a guest puts out follows the keys that it is given: a randomisation test. Pure; it knows no guest.

Keys are given in half of the windows of time, chosen at random. If nothing in the guest heeds keys, its output would
have been the same for any other choice, however bursty it is and whatever one window has to do with the next. So the
share of the choices by which it fits at least as well as by ours is the probability to be fooled; see Ernst,
"Permutation Methods", Statistical Science 19 (2004), and for the greatest of several statistics Westfall and Young,
"Resampling-Based Multiple Testing" (1993).

The statistic is the correlation of the ranks of the output (a burst counts no more than any other greatest value) with
the keys of a window and of those before, by each of some *kernels*: weights of the window itself, the one before, ….
"""

import bisect
import itertools
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

DRAWS = 20000  # choices that are tried; all of them, where there are no more
_SAME = 1e-9  # two statistics are one, whatever the rounding

Key = TypeVar("Key", bound=Hashable)
Kernel = tuple[float, ...]

AT_ONCE: tuple[Kernel, ...] = ((1.0,),)
# What takes up to two windows comes out in two that are neighbours, whatever the share of each, or drifts.
DELAYED: tuple[Kernel, ...] = (
    (1.0, 0.0, 0.0),
    (0.75, 0.25, 0.0),
    (0.5, 0.5, 0.0),
    (0.25, 0.75, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, 0.75, 0.25),
    (0.0, 0.5, 0.5),
    (0.0, 0.25, 0.75),
    (0.0, 0.0, 1.0),
    (0.25, 0.5, 0.25),
)


def choose(windows: int, source: random.Random) -> tuple[bool, ...]:
    """In which of an even number of *windows* keys are given: each half of them is as likely as any other."""
    chosen = set(source.sample(range(windows), windows // 2))
    return tuple(number in chosen for number in range(windows))


def choices(windows: int) -> int:
    """How many choices there are."""
    return math.comb(windows, windows // 2)


def smallest(windows: int) -> float:
    """The smallest probability of a false alarm that so many windows can show."""
    there = choices(windows)
    return 1 / (there if there <= DRAWS else DRAWS + 1)


def ranks(values: Sequence[float]) -> list[float] | None:
    """The ranks of *values*, of equal ones their mean, centred and of length 1; None where all are equal."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    first = 0
    for _, group in itertools.groupby(order, key=values.__getitem__):
        members = list(group)
        for number in members:
            found[number] = first + (len(members) - 1) / 2 - (len(values) - 1) / 2
        first += len(members)
    length = math.sqrt(sum(rank * rank for rank in found))
    return [rank / length for rank in found] if length else None


class Trial(Generic[Key]):
    """What is said by *series* of output, window by window, when keys were given as *pattern* says.

    Each series goes on for as many windows as the longest kernel has weights but one. *source* draws the choices where
    there are more than DRAWS.
    """

    def __init__(
        self,
        pattern: Sequence[bool],
        series: Mapping[Key, Sequence[float]],
        kernels: Sequence[Kernel],
        source: random.Random,
    ) -> None:
        self._kernels, self._windows, self._source = kernels, len(pattern), source
        self._pattern = tuple(pattern)
        self._own = [number for number, on in enumerate(pattern) if on]
        self._series = dict(series)
        self._scores = {key: self._scored(values) for key, values in series.items()}
        self.exact = choices(self._windows) <= DRAWS
        known = [scores for scores in self._scores.values() if scores is not None]
        self._greatest = sorted(self._draw(known)) if known else [0.0]

    def statistic(self, key: Key) -> float:
        """How well this series fits: 1 is perfectly, 0 not at all."""
        return self._best(self._scores[key])

    def chance(self, statistic: float) -> float:
        """The probability that any series of a guest that heeds no keys fits so well."""
        there = len(self._greatest)
        as_good = there - bisect.bisect_left(self._greatest, statistic - _SAME)
        return as_good / there if self.exact else (1 + as_good) / (1 + there)

    def chance_with(self, key: Key, more: float) -> float:
        """chance() of this series, had there been *more* of it in each window with keys."""
        own = set(self._own)
        values = [value + more * (number in own) for number, value in enumerate(self._series[key])]
        other = Trial(self._pattern, {**self._series, key: values}, self._kernels, self._source)
        return other.chance(other.statistic(key))

    def means(self, key: Key) -> tuple[float, float]:
        """The output of a window with keys and of one without, on the average."""
        values = self._series[key]
        own = set(self._own)
        on = [value for number, value in enumerate(values) if number in own]
        off = [value for number, value in enumerate(values) if number not in own]
        return sum(on) / len(on), sum(off) / len(off)

    def _scored(self, values: Sequence[float]) -> list[list[float]] | None:
        """By each kernel, what keys in each window contribute to the covariance of keys and ranks."""
        ranked = ranks(values)
        if ranked is None:
            return None
        return [
            [sum(weight * ranked[number + lag] for lag, weight in enumerate(kernel)) for number in range(self._windows)]
            for kernel in self._kernels
        ]

    def _best(self, scores: list[list[float]] | None) -> float:
        return 0.0 if scores is None else self._greatest_of([scores], self._own)

    def _greatest_of(self, all_scores: Sequence[list[list[float]]], chosen: Sequence[int]) -> float:
        """The greatest correlation, had keys been given in the windows *chosen*."""
        greatest = 0.0
        lengths = self._lengths(chosen)
        for scores in all_scores:
            for score, length in zip(scores, lengths, strict=True):
                greatest = max(greatest, sum(map(score.__getitem__, chosen)) / length)
        return greatest

    def _lengths(self, chosen: Sequence[int]) -> list[float]:
        """Of the keys by each kernel, centred: the root of the sum of squares."""
        mask = 0
        for number in chosen:
            mask |= 1 << number
        found = []
        for kernel in self._kernels:
            square = 0.0
            for apart in range(len(kernel)):
                both = sum(map(float.__mul__, kernel, kernel[apart:]))
                square += both * (mask & mask >> apart).bit_count() * (2 if apart else 1)
            whole = len(chosen) * sum(kernel)
            found.append(math.sqrt(square - whole * whole / (self._windows + len(kernel) - 1)))
        return found

    def _draw(self, all_scores: Sequence[list[list[float]]]) -> Iterator[float]:
        half = self._windows // 2
        if self.exact:
            for chosen in itertools.combinations(range(self._windows), half):
                yield self._greatest_of(all_scores, chosen)
            return
        for _ in range(DRAWS):
            yield self._greatest_of(all_scores, self._source.sample(range(self._windows), half))

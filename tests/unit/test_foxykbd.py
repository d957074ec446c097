# SPDX-License-Identifier: Apache-2.0
"""dre-foxykbd's judgement, and its typing at guests made for it: false alarms as stated, loggers found, no harm."""

import itertools
import random
import sys

import pytest
from conftest import ROOT
from foxykit import Clock, Guest, Logger, noise
from hypothesis import given, settings
from hypothesis import strategies as some

sys.path.insert(0, str(ROOT / "sysmon"))

from dre.errors import MissingError, UsageError  # noqa: E402
from sysmonlib import devices, foxy, keyboard, typist  # noqa: E402
from sysmonlib.cmd import dre_foxykbd  # noqa: E402

ACCEPTED = dre_foxykbd.FALSE_ALARM


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    """Enough to tell what is accepted, and a fifth of the time."""
    monkeypatch.setattr(foxy, "DRAWS", 4000)


def source(number=1):
    return random.Random(number)


# The judgement.


@settings(max_examples=8)
@given(
    some.lists(some.tuples(some.integers(0, 9), some.floats(0, 1e9)), min_size=10, max_size=10),
    some.sampled_from([foxy.AT_ONCE, foxy.DELAYED[:5]]),
)
def test_of_all_choices_no_more_alarm_than_is_stated(output, kernels):
    """Whatever the guest puts out: it does not depend on the choice, and each choice is as likely as any other."""
    windows = 8 if len(kernels[0]) > 1 else 10
    series = {number: [row[number] for row in output] for number in (0, 1)}
    chances = []
    for chosen in itertools.combinations(range(windows), windows // 2):
        pattern = [number in chosen for number in range(windows)]
        trial = foxy.Trial(pattern, series, kernels, source())
        assert trial.exact
        chances.append(min(trial.chance(trial.statistic(key)) for key in series))
    for count, chance in enumerate(sorted(chances), 1):
        assert sum(other <= chance for other in chances) / len(chances) <= chance + 1e-12, count


def test_what_fits_perfectly_is_as_certain_as_the_number_of_windows_lets_it_be():
    for windows, kernels in ((12, foxy.AT_ONCE), (20, foxy.AT_ONCE), (30, foxy.DELAYED)):
        pattern = foxy.choose(windows, source())
        values = [1000 + on for on in pattern] + [1000] * (len(kernels[0]) - 1)
        trial = foxy.Trial(pattern, {"x": values}, kernels, source())
        assert trial.exact == (windows == 12)
        assert trial.statistic("x") == pytest.approx(1)
        assert foxy.smallest(windows) <= trial.chance(trial.statistic("x")) <= 3 * foxy.smallest(windows)
        assert trial.means("x")[0] == 1001


def test_ranks_of_equals_are_one_and_a_burst_is_no_more_than_the_greatest():
    assert foxy.ranks([5, 5, 5]) is None
    one, other = foxy.ranks([1, 2, 2, 9]), foxy.ranks([1, 2, 2, 9e9])
    assert one == other and one[1] == one[2] and sum(one) == pytest.approx(0)


def test_choices_are_balanced_and_differ():
    seen = {foxy.choose(8, source(number)) for number in range(2000)}
    assert len(seen) == 70 and {sum(pattern) for pattern in seen} == {4}


def test_the_statistic_is_the_correlation():
    """Beside the sum as a textbook has it."""
    pattern, values = foxy.choose(10, source(3)), [source(4).randrange(20) for _ in range(10)] + [3, 17]
    for kernel in foxy.DELAYED:
        own = foxy.Trial(pattern, {"x": values}, [kernel], source()).statistic("x")
        keys = [
            sum(w * pattern[at - lag] for lag, w in enumerate(kernel) if 0 <= at - lag < 10)
            for at in range(len(values))
        ]
        ranked, mean = foxy.ranks(values), sum(keys) / len(keys)
        length = sum((key - mean) ** 2 for key in keys) ** 0.5
        expected = sum(rank * (key - mean) for rank, key in zip(ranked or keys, keys, strict=True)) / length
        assert own == pytest.approx(max(0.0, expected if ranked else 0.0))


# Guests.


def tried(guest, course, number=1):
    """What is judged of a guest: the devices found."""
    random_source = source(number)
    hands = typist.Typist(guest, random_source, guest.clock, guest.clock.sleep)
    hands.listen()
    typed = hands.type(course, foxy.choose(course.windows, random_source))
    trial = foxy.Trial(typed.pattern, typed.series, course.kernels, random_source)
    return typed, trial, [key[0] for key, _ in dre_foxykbd._found(trial, typed, ACCEPTED)]


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "kind, device",
    [
        ({"each": 40}, "vda"),
        ({"out": "send", "each": 60}, "tap0"),
        ({"most": 4}, "vda"),
        ({"later": 0.2}, "vda"),
    ],
)
def test_what_logs_at_once_is_found(kind, device, busy):
    guest = Guest(Clock())
    if busy:
        noise(guest, source(5), 0.7)
    Logger(guest, **{**kind, "out": getattr(guest, kind.get("out", "write"))})
    typed, _, found = tried(guest, typist.at_once(20))
    assert found == [device]
    assert typed.keys == 600 and typed.arrived() and guest.line == ""


@pytest.mark.parametrize(
    "kind",
    [
        {"most": 4096},
        {"most": 4096, "later": 35},
        {"most": 1 << 30, "wait": 60},
        {"most": 1 << 30, "wait": 59, "later": 35},
        {"most": 1 << 30, "wait": 31, "out": "send"},
    ],
)
def test_what_keeps_keys_is_found_slowly(kind):
    guest = Guest(Clock())
    out = {"write": lambda octets: guest.write(-(-octets // 4096) * 4096), "send": guest.send}[kind.get("out", "write")]
    Logger(guest, **{**kind, "out": out})
    _, _, found = tried(guest, typist.slowly(30))
    assert found == ["tap0" if "out" in kind else "vda"]
    assert guest.line == ""


def test_what_keeps_keys_is_not_found_at_once():
    """So that this is never called clean."""
    guest = Guest(Clock())
    Logger(guest, most=4096)
    assert tried(guest, typist.at_once(20))[2] == []


@pytest.mark.parametrize("course", [typist.at_once(20), typist.slowly(30)])
def test_a_guest_that_is_busy_by_itself_is_not_accused(course):
    for number in range(5):
        guest = Guest(Clock())
        noise(guest, source(number), 2.0)
        assert tried(guest, course, number)[2] == []


def test_what_puts_out_too_much_could_hide_a_logger():
    guest = Guest(Clock())
    guest.clock.every(0.01, lambda: guest.write(random.Random(guest.clock.now).randrange(1 << 20), 99))
    course = typist.at_once(20)
    _, trial, found = tried(guest, course)
    assert found == []
    seen = {key: trial.chance_with(key, course.least[key[1]]) <= ACCEPTED for key in guest.count}
    assert not seen["vda", "octets"] and seen["tap0", "packets"] and seen["tap0", "octets"]


def test_who_types_there_is_left_alone():
    guest = Guest(Clock())
    guest.clock.every(0.4, lambda: guest.press([30]))
    with pytest.raises(MissingError, match="typing"):
        typist.Typist(guest, source(), guest.clock, guest.clock.sleep).listen()
    assert set(guest.line) == {"x"}
    guest = Guest(Clock())
    guest.clock.at(12.0, lambda: guest.clock.every(0.3, lambda: guest.press([30])))  # begins later
    with pytest.raises(MissingError, match="typing"):
        tried(guest, typist.at_once(20))
    assert guest.clock.now < 33


def test_a_guest_that_does_not_take_keys_is_not_looked_at():
    guest = Guest(Clock())
    guest.reads = False
    with pytest.raises(MissingError, match="takes no keys"):
        tried(guest, typist.at_once(8))
    assert guest.line == ""
    guest = Guest(Clock())
    guest.clock.at(8.0, lambda: setattr(guest, "reads", False))  # hangs
    typed, _, found = tried(guest, typist.at_once(8))
    assert found == [] and not typed.arrived()


def test_a_letter_whose_backspace_was_lost_is_erased():
    guest = Guest(Clock())
    pressed = guest.press

    def press(keys):
        pressed(keys[:1] if len(keys) == 2 and source(guest.clock.now).random() < 0.05 else keys)

    guest.press = press
    typed, _, _ = tried(guest, typist.at_once(8))
    assert typed.lost() and guest.line == ""
    guest = Guest(Clock())
    guest.clock.at(5.0, lambda: guest.count.pop(("vda", "octets")))  # unplugged
    with pytest.raises(MissingError, match="unplugged"):
        tried(guest, typist.at_once(8))
    assert guest.line == ""


def test_a_host_that_is_too_slow_says_nothing_of_the_guest():
    guest = Guest(Clock())
    press = guest.press

    def late(keys):
        guest.clock.now += 0.2
        press(keys)

    guest.press = late
    with pytest.raises(MissingError, match="busy"):
        tried(guest, typist.at_once(8))


# What QEMU and libvirt tell.


def test_counts_of_interrupts_are_those_of_the_io_apic():
    text = "IRQ statistics for ioapic:\r\n 0: 50\r\n 1: 2\r\n12: 9\nIRQ statistics for isa-i8259:\n 1: 7\n 4: 3\n"
    assert keyboard.counted(text) == {0: 50, 1: 2, 12: 9}
    assert keyboard.counted("unknown command: 'info irq'\n 1: 2") == {}


def test_figures_are_of_the_device_that_has_them():
    figures = {
        "block.count": 2,
        "block.0.name": "vda",
        "block.0.wr.bytes": 5,
        "block.0.path": "/x",
        "block.1.name": "vdb",
    }
    assert devices.grouped(figures, "block") == {"vda": {"wr.bytes": 5}, "vdb": {}}
    assert devices.grouped(figures, "net") == {}


def test_keys_have_the_kernel_s_numbers():
    assert keyboard.chords("a ctrl+alt+f2 Enter space backspace kpasterisk scrolllock") == [
        [30],
        [29, 56, 60],
        [28],
        [57],
        [14],
        [55],
        [70],
    ]
    for wrong in ("ctrl+", "ä", "+".join("abcdefghijklmnopq")):
        with pytest.raises(UsageError):
            keyboard.chords(wrong)

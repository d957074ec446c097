# SPDX-License-Identifier: Apache-2.0
"""Names, sizes, percents and durations: what is taken and what is not."""

import re

import pytest
from dre import units
from dre.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("text", ["a", "0", "web1", "a-b", "a" * 31, "9-"])
def test_names(text):
    assert units.name(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "-a", "a" * 32, "a" * 40, "A", "a/b", "..", "a.b", "a b", "a\n", "\na", "é", "a_b", "$a", "a;b", "\uff41"],
)
def test_no_names(text):
    with pytest.raises(UsageError, match="is not a name"):
        units.name(text)


@given(st.text(max_size=40))
def test_a_name_is_just_what_the_contract_says(text):
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", text):
        assert units.name(text) == text
    else:
        with pytest.raises(UsageError):
            units.name(text)


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("0", 0),
        ("1", 1),
        ("1K", 1024),
        ("1k", 1024),
        ("512M", 512 * 1024**2),
        ("512MiB", 512 * 1024**2),
        ("1.5G", 3 * 1024**3 // 2),
        ("2T", 2 * 1024**4),
    ],
)
def test_sizes(text, octets):
    assert units.size(text) == octets


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "+1",
        "1e3",
        "1 M",
        " 1",
        "1_0",
        "0x10",
        "1P",
        "1MM",
        ".5M",
        "1.",
        "inf",
        "nan",
        "\u0661",
        "1\u212a",
        "8388608T",  # 2^63
        "9" * 400,
    ],
)
def test_no_sizes(text):
    with pytest.raises(UsageError, match="is not a size"):
        units.size(text)


@given(st.integers(0, 2**50))
def test_a_number_of_bytes_is_exact(octets):
    assert units.size(str(octets)) == octets


@pytest.mark.parametrize(("text", "value"), [("50", 50.0), ("50%", 50.0), ("0.5", 0.5), ("400", 400.0)])
def test_percents(text, value):
    assert units.percent(text) == value


@pytest.mark.parametrize(
    "text", ["", "%", "0", "0%", "-5", "+5", "5%%", "1e2", "1_0", " 5", "nan", "inf", "1000000", "9" * 400, "\u0665"]
)
def test_no_percents(text):
    with pytest.raises(UsageError, match="is not a percentage"):
        units.percent(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("200ms", 0.2), ("3s", 3.0), ("3", 3.0), ("0", 0.0), ("10m", 600.0), ("1.5h", 5400.0), ("2d", 172800.0)],
)
def test_durations(text, value):
    assert units.duration(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 s", "1w", "1S", "1m30s", "1e3s", "inf", "nan", "\u0661s", "36501d", "9" * 400]
)
def test_no_durations(text):
    with pytest.raises(UsageError, match="is not a duration"):
        units.duration(text)

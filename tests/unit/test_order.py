# SPDX-License-Identifier: Apache-2.0
"""The order of apps: behind what they are after, whatever the graph; a circle is named."""

import pytest
from dre import order
from dre.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st

NAMES = "abcdef"


def ordered(graph, names):
    return order.walk(names, lambda name: graph.get(name, ()))


def test_each_stands_behind_what_it_is_after():
    assert ordered({"a": "bc", "b": "d", "c": "d"}, ["a", "e"]) == ["d", "b", "c", "a", "e"]


def test_a_circle_is_named():
    with pytest.raises(UsageError, match="b: is after itself: b after c after b"):
        ordered({"a": "b", "b": "c", "c": "b"}, ["a"])


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3)))
def test_any_graph(graph):
    try:
        found = ordered(graph, NAMES)
    except UsageError as error:
        circle = str(error).partition("itself: ")[2].split(" after ")
        assert circle[0] == circle[-1]
        assert all(second in graph[first] for first, second in zip(circle, circle[1:], strict=False))
        return
    assert sorted(found) == sorted(NAMES)
    assert all(found.index(other) < found.index(name) for name, others in graph.items() for other in others)


@given(
    st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3)),
    st.sets(st.sampled_from(NAMES)),
)
def test_waves_stop_in_the_reverse_order(graph, running):
    original, order.after = order.after, lambda conf, name: tuple(graph.get(name, ()))
    try:
        found = order.waves(None, running)
    finally:
        order.after = original
    assert sorted(name for wave in found for name in wave) == sorted(running)
    if len(found) > 1:
        level = {name: number for number, wave in enumerate(found) for name in wave}
        for name in running:
            assert all(level[name] < level[other] for other in graph.get(name, ()) if other in running)

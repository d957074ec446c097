# SPDX-License-Identifier: Apache-2.0
"""Request ids: the first outcome is the answer to every later call; another command under the same id is refused."""

import pytest
from dre import conf, requests
from dre.errors import UsageError
from dre.requests import Outcome


@pytest.fixture
def settings(tmp_path):
    return conf.Conf(core_state_dir=tmp_path / "state", core_run_dir=tmp_path / "run")


def test_first_outcome_is_remembered(settings):
    with requests.asked(settings, "a.1", {"verb": "limit", "cpu": 50.0}) as request:
        assert (request.outcome, request.again) == (None, False)
        request.remember(Outcome(1, "out\n", "it failed"))
    with requests.asked(settings, "a.1", {"verb": "limit", "cpu": 50.0}) as request:
        assert request.outcome == Outcome(1, "out\n", "it failed")


def test_another_command_is_refused(settings):
    with requests.asked(settings, "a", {"verb": "start"}) as request:
        request.remember(Outcome(0, "", ""))
    with pytest.raises(UsageError, match="another command"), requests.asked(settings, "a", {"verb": "stop"}):
        pass


def test_a_killed_call_is_known_to_have_begun(settings):
    with requests.asked(settings, "a", {"verb": "undo"}):
        pass  # ends without an outcome, as a killed one does
    with requests.asked(settings, "a", {"verb": "undo"}) as request:
        assert (request.outcome, request.again) == (None, True)
    requests.complete(settings, "a")
    assert requests.completed(settings, "a")


def test_nobody_asked_for_nothing(settings):
    requests.complete(settings, None)
    requests.complete(settings, "unknown")
    assert not requests.completed(settings, None)
    assert not requests.completed(settings, "unknown")


def test_old_outcomes_are_forgotten(settings, monkeypatch):
    monkeypatch.setattr(requests, "KEEP", 4)
    for number in range(9):
        with requests.asked(settings, f"id{number}", {}) as request:
            request.remember(Outcome(0, "", ""))
    left = list((settings.core_state_dir / "app/requests").glob("*.json"))
    assert len(left) <= 4
    assert any(path.name == "id8.json" for path in left)


@pytest.mark.parametrize("text", ["", "../x", "a/b", ".hidden", "a b", "x" * 129, "a\n"])
def test_bad_ids(text):
    with pytest.raises(UsageError):
        requests.identity(text)

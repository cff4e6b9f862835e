"""What counts as a surprise among the outcomes of other people's tests."""

from __future__ import annotations

import pytest

from .judging import NOT_HERE, Outcomes, missing, report, surprises


def outcomes() -> Outcomes:
    """One of each kind."""
    made = Outcomes()
    made.passed("good")
    made.failed("bad", "why\n")
    made.passed("bad")  # of its last part
    made.skipped("elsewhere")
    return made


def test_what_is_named_may_fail() -> None:
    """A failure is a surprise unless it is named, by name or pattern; a named one that passes is one, too."""
    assert [line.split()[0] for line in surprises(outcomes(), {})] == ["bad"]
    assert surprises(outcomes(), {"b*": "a reason"}) == []
    assert [line.split()[0] for line in surprises(outcomes(), {"bad": "", "good": ""})] == ["good"]
    assert surprises(outcomes(), {"bad": "", "elsewhere": "", "of another version": ""}) == []


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is 0 where all is as known, and where no fewer tests passed than once did."""
    assert report(outcomes(), {"bad": "a reason"}, 1) == 0
    assert "1 as they should, 1 differ as known, 0 unexpected, 1 not for here" in capsys.readouterr().out
    assert report(outcomes(), {}, 1) == 1
    assert "UNEXPECTED bad failed\nwhy" in capsys.readouterr().out
    assert report(outcomes(), {"bad": "a reason"}, 2) == 1


def test_missing_tests_are_an_error_where_they_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are skipped with a status of its own, and a failure with `TIMESPAN_REQUIRE_PEERS`."""
    monkeypatch.delenv("TIMESPAN_REQUIRE_PEERS", raising=False)
    assert missing("none here") == NOT_HERE
    monkeypatch.setenv("TIMESPAN_REQUIRE_PEERS", "1")
    assert missing("none here") == 1

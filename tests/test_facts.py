"""The list of facts and their tests is read out of the tests themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import facts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("§4.2: a fact", [("timespans", (4, 2))]),
        ("§1.1-1.3 and §9", [("timespans", (1, 1)), ("timespans", (1, 2)), ("timespans", (1, 3)), ("timespans", (9,))]),
        ("§1.1 to §1.2.", [("timespans", (1, 1)), ("timespans", (1, 2))]),
        ("§5, spec/scheduler.md §19; §18", [("timespans", (5,)), ("scheduler", (19,)), ("scheduler", (18,))]),
        ("ruling 20, defect 3", []),
    ],
)
def test_sections_in_a_text(text: str, found: list[tuple[str, tuple[int, ...]]]) -> None:
    """Sections, ranges of them, and those of another specification."""
    assert facts.sections_in(text, "timespans") == found


def test_where_a_test_says_its_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its docstring comes before its name, its name before its class, its class before its module."""
    file = tmp_path / "tests" / "test_x.py"
    file.parent.mkdir()
    file.write_text(
        '"""spec/timespans.md §1."""\n'
        'class TestA:\n    """§2."""\n'
        '    def test_a(self):\n        """Of its class."""\n'
        '    def test_section_3_1_b(self):\n        """By its name."""\n'
        '    def test_2_1_e(self):\n        """By its name, which is of its class."""\n'
        '    def test_24_f(self):\n        """A ruling: of its class."""\n'
        '    def test_3_c(self):\n        """§4: by its text."""\n'
        'def test_d():\n    """Of its module."""\n'
        "def helper():\n    pass\n"
    )
    monkeypatch.setattr(facts, "ROOT", file.parent)
    found = [(fact.section, fact.test.rpartition("::")[2], fact.text) for fact in facts.facts_in(file)]
    assert found == [
        ((2,), "test_a", "Of its class."),
        ((3, 1), "test_section_3_1_b", "By its name."),
        ((2, 1), "test_2_1_e", "By its name, which is of its class."),
        ((2,), "test_24_f", "A ruling: of its class."),
        ((4,), "test_3_c", "§4: by its text."),
        ((1,), "test_d", "Of its module."),
    ]


def test_edges_are_no_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a module that names a specification and no section only those tests count that say one themselves."""
    file = tmp_path / "tests" / "test_x.py"
    file.parent.mkdir()
    file.write_text(
        '"""spec/timespans.md, a topic."""\n'
        'def test_a():\n    """§2: a fact."""\n'
        'def test_s3_1_b():\n    """By its name."""\n'
        'def test_c():\n    """An edge."""\n'
    )
    monkeypatch.setattr(facts, "ROOT", file.parent)
    assert [fact.section for fact in facts.facts_in(file)] == [(2,), (3, 1)]


def test_every_acceptance_test_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each acceptance test of the two specifications shows up; every main section of the log has tests."""
    assert facts.main([]) == 0
    printed = capsys.readouterr().out
    for folder in ("acceptance_timespans", "dagger/acceptance"):
        for path in (facts.ROOT / folder).glob("test_acc_*.py"):
            if "spec/" in path.read_text().split('"""')[1]:
                assert f"{folder}/{path.name}::" in printed, path.name
    assert facts.main(["timespans", "--counts"]) == 0
    counted = capsys.readouterr().out
    assert all(f"\n§{section}" in counted for section in range(1, 11))

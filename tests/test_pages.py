"""Figures and tables of README and docs come from commands."""

import re
import sys

import pytest
from conftest import REPOSITORY

from raymu import row
from raymu.evaluation import metrics
from raymu.results.ranking import FIXED

sys.path.insert(0, str(REPOSITORY / "tests" / "benchmarks"))

import pages

UNCHOSEN = {*FIXED, "published"}
POINTS, SCORE = 5, 0.1
TOLERANCE = (
    f"accuracies come out to within {POINTS} points and scores to within {SCORE}. The search goes another way there, so"
    f" of *tuned* no more compares than that it is not below *published*, by more than {SCORE}."
)
TEXTS = [page.read_text() for page in pages.PAGES]
STATED = {command: content for text in TEXTS for command, content in pages.blocks(text).items()}


def figures(content: str) -> dict[str, list[float]]:
    """The numbers of every line of a table, by its first word."""
    lines = [line.split() for line in content.splitlines()]
    return {line[0]: [float(cell) for cell in line[1:]] for line in lines if re.search(r" \d+\.\d", " ".join(line))}


def test_the_commands_of_the_pages_are_found() -> None:
    assert [command.split()[1:3] for command in STATED] == [
        ["sweeps/salun.py", "--concurrent"],
        ["sweeps/svd.py", "--concurrent"],
        ["sweeps/scrub.py", "--head"],
        ["tests/benchmarks/pages.py", "machine"],
        ["methods", "--markdown"],
        ["tests/benchmarks/pages.py", "metrics"],
        ["tests/benchmarks/pages.py", "columns"],
    ]
    tables = [figures(content) for content in list(STATED.values())[:3]]
    assert [list(table) for table in tables] == [
        [*FIXED, "published", "tuned"],
        ["published", "tuned"],
        ["published", "tuned"],
    ]
    assert {len(numbers) for table in tables for numbers in table.values()} == {6}
    assert " ".join(TOLERANCE.split()) in " ".join(TEXTS[1].split())


def test_the_tables_of_metrics_and_columns_are_those_of_the_code() -> None:
    *_, measured, columns = STATED.values()
    assert measured == metrics.markdown_table() + "\n"
    assert columns == row.markdown_table() + "\n"


def test_a_block_is_what_its_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\n\n<!-- python -c 'print(1)' -->\n```\nold\n```\n\nb\n\n<!-- python -c 'print(2)' -->\nold\nolder\n\nc\n"
    new = "a\n\n<!-- python -c 'print(1)' -->\n```\n1\n```\n\nb\n\n<!-- python -c 'print(2)' -->\n2\n\nc\n"
    assert pages.rewritten([text]) == [new] == pages.rewritten([new])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_figures_of_the_pages_come_out_again() -> None:
    for command, printed in pages.run(list(STATED)).items():
        if command.startswith("raymu"):
            assert printed == STATED[command]
        if "sweeps" not in command:
            continue
        there, here = figures(STATED[command]), figures(printed)
        assert list(here) == list(there)
        assert here["tuned"][0] >= here["published"][0] - SCORE, command
        for name, numbers in here.items():
            if name in UNCHOSEN:
                assert numbers[0] == pytest.approx(there[name][0], abs=SCORE), f"{command}: {name}"
                assert numbers[1:] == pytest.approx(there[name][1:], abs=POINTS), f"{command}: {name}"
            if "svd" in command and name == "published":  # what the text says of it
                removal, retain, forget, attack, *_ = numbers
                assert removal < 0.05
                assert forget < 10 < 95 < retain
                assert attack > 0.999

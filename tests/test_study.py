"""The application as a script calls it; docs/python.ipynb is run by test_docs.py."""

import dataclasses
import json

import pytest
import torch

import raymu
from raymu import devices, fixed_points, objective, reference_models
from raymu.engines import Options
from raymu.errors import InputError
from raymu.method import Method
from raymu.methods.salun import SalUn
from raymu.methods.ssd import SSD
from raymu.study import possible


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_is_evaluated_with_the_threads_of_a_trial(threads: int, quick, quick_references) -> None:
    seen = raymu.Metric(lambda head: float(torch.get_num_threads()), "threads")
    with devices.cpu_threads(3):
        row = raymu.evaluate(quick_references.model(), quick, [seen], Options(threads=threads))
        assert (row["train_threads"], torch.get_num_threads()) == (threads, 3)


def test_sweeps_that_make_no_sense_are_left_out(digits) -> None:
    def make(method: type[Method], train: str):
        return lambda: raymu.Sweep(method, digits, train=train)

    sweeps, refused = possible([make(SalUn, "classifier"), make(SSD, "classifier")])
    assert [sweep.name for sweep in sweeps] == ["salun-classifier"]
    assert len(refused) == 1
    with pytest.raises(InputError, match="two of the sweeps are salun"):
        possible([make(SalUn, "all")] * 2)
    with pytest.raises(InputError, match="ssd"):
        possible([make(SSD, "classifier")])


def test_references_are_the_four_networks_and_what_there_is_to_forget(quick, quick_references) -> None:
    found = raymu.references(quick)
    memory = found.pop("memory")
    known = quick_references.metrics
    assert list(found) == [*known, "untrained"]
    assert all({column: found[which][column] for column in row} == row for which, row in known.items())
    for which, row in found.items():
        assert row["test_score"] == objective.REMOVAL.of(row, known, "test"), which
    assert (found["original"]["score"], found["retrained"]["score"]) == (0, 1)
    for split, one in reference_models.memory(quick_references.scenario).items():
        assert memory[split] == one._asdict() | {"interval": list(one.interval)}
    assert json.loads(json.dumps([found, memory])) == [found, memory]


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"forget": (10,)}, {}, "forget class 10 is outside the data"),
        ({"forget": (), "forget_share": 0.1}, {"objective": objective.get("hmean")}, "use removal"),
        ({}, {"weights_file": "x"}, "quick starts from random weights"),
    ],
)
def test_references_that_make_no_sense_are_refused(changes, given, message, quick, monkeypatch) -> None:
    monkeypatch.setattr(fixed_points, "measured", None)  # nothing may get that far
    with pytest.raises(InputError, match=message):
        raymu.references(dataclasses.replace(quick, **changes), **given)

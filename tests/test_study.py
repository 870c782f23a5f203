"""docs/python.md, line by line: the application as a script or a notebook calls it."""

import re

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

import raymu
from raymu import devices
from raymu.engines import Options
from raymu.errors import InputError
from raymu.method import Method
from raymu.methods.salun import SalUn
from raymu.methods.ssd import SSD
from raymu.study import possible

PAGE = (REPOSITORY / "docs" / "python.md").read_text()

two_sweeps = pytest.mark.cluster


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict:
    """What the page's lines leave behind, in one directory."""
    here = tmp_path_factory.mktemp("notebook")
    said: dict = {"here": here}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
            exec(block, said)  # the page asserts, too
    return said


@two_sweeps
def test_the_page_tunes_and_looks(said) -> None:
    assert [result.name for result in said["results"]] == ["random_label", "salun"]
    assert sorted(said["table"]["trial"]) == [0, 0, 1, 1, 2, 2]
    assert raymu.table(said["here"] / "study").equals(said["table"])
    assert {one.sweep.name for one in said["ranked"]} == {"random_label", "salun"}
    assert {"tradeoff", "comparison", "hyperparameters of salun"} <= said["figures"].keys()


@two_sweeps
def test_the_page_has_models(said) -> None:
    row, model = said["row"], said["model"]
    assert {key: said["measured"][key] for key in raymu.evaluation.columns()} == {
        key: row[key] for key in raymu.evaluation.columns()
    }
    assert said["measured"]["test_probe_forget_acc_gap"] == row["test_probe_forget_acc_gap"]
    kept = load_file(said["here"] / "unlearned" / "model.safetensors")
    assert kept.keys() == model.state_dict().keys()
    again, other = said["trial"].run()
    assert all(torch.equal(weight, kept[name]) for name, weight in other.state_dict().items())
    assert (again["seed"], again["config"]["epochs"]) == (1, 2)


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

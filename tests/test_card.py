"""A model card: its figures are the row's, and its Python loads the model."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file

from raymu import methods, reference_models, splits
from raymu.architecture import Made
from raymu.model_card import model_card
from raymu.models import architectures, inference
from raymu.results.tables import COLUMNS, metric
from raymu.scenario import SCENARIOS, Scenario
from raymu.trial import run_trial


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


PAPER = "Golatkar et al., CVPR 2020"


def a_row(scenario: Scenario, **more) -> dict:
    """A completed row whose figures are all different."""
    figures = {f"test_{column}": 0.9 - 0.123 * place for place, column in enumerate(COLUMNS.values())}
    return {
        "method": "random_label",
        "scenario": scenario.name,
        "head": "linear",
        "train": "all",
        "seed": 3,
        "epochs": 5,
        "objective": "hmean",
        "score": 0.41239,
        "config": {"lr": 0.0123456789, "epochs": 5, "clip": None},
        **figures,
        **more,
    }


def snippet(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    return code


def run_snippet(card: str, directory: Path, images: torch.Tensor) -> torch.Tensor:
    """The logits of images with values in 0..1, by the card's Python in a process of its own."""
    save_file({"images": images.contiguous()}, directory / "images.safetensors")
    program = (
        snippet(card)
        + "from safetensors.torch import save_file\n"
        + 'save_file({"logits": logits(load_file("images.safetensors")["images"])}, "logits.safetensors")\n'
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0, printed.stderr
    return load_file(directory / "logits.safetensors")["logits"]


@pytest.mark.long
@pytest.mark.parametrize("head", ["linear", "cmf"])
def test_the_card_of_a_run_loads_its_model_and_tells_its_figures(raymu, tmp_path, head) -> None:
    digits = SCENARIOS["digits"]
    digits_data = splits.load(digits, torch.device("cpu"))
    config = {"lr": 0.01, "epochs": 1} | ({"temperature": 8.5} if head == "cmf" else {})
    (tmp_path / "setting.yaml").write_text(yaml.safe_dump({"config": config, "head": head}))
    printed = raymu("run", "random_label", "--config", "setting.yaml", "--out", "out")
    assert printed.returncode == 0, printed.stderr
    row = json.loads((tmp_path / "out" / "row.json").read_text())
    known = {which: reference_models.metrics(digits)[which] for which in reference_models.REFERENCES}
    card = model_card(row, known, digits, PAPER)
    assert (tmp_path / "out" / "README.md").read_text() == card

    lines = card.splitlines()
    for model, figures in {**known, "this model": row}.items():
        cells = [metric(f"test_{column}", figures[f"test_{column}"]) for column in COLUMNS.values()]
        assert f"| {model} | {' | '.join(cells)} |" in lines
    # The same trial once more gives the model that was saved.
    again, model = run_trial(digits, methods.get("random_label").from_config(config, head=head), seed=0)
    assert again["test_probe_forget_acc"] == row["test_probe_forget_acc"]
    split = digits_data.test.retain
    some = split.subset(torch.arange(40))
    with torch.no_grad():
        _, expected = inference.features_and_logits(model.eval(), some.read())
    found = run_snippet(card, tmp_path / "out", split.images.pixels[some.index].float() / 255)
    assert found.shape == (40, 10)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_stem_and_an_image_size_are_rebuilt(tmp_path: Path) -> None:
    """What `raymu.models.architectures.build` makes takes the weights of the card's model, and answers alike."""
    resnet = SCENARIOS["cifar10-resnet18"]
    vit = dataclasses.replace(
        resnet, architecture="test_vit", cifar_stem=False, model_args=(("patch_size", 4), ("depth", 1))
    )
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for scenario in (resnet, vit):
        model = architectures.build(scenario, seed=5).eval()
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        found = run_snippet(model_card(a_row(scenario), None, scenario, PAPER), tmp_path, images)
        mean, std = (
            torch.tensor(values).view(-1, 1, 1) for values in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
        )
        with torch.no_grad():
            torch.testing.assert_close(found, model((images - mean) / std), rtol=1e-4, atol=1e-5)


def test_the_front_matter_is_what_hugging_face_reads(digits: Scenario) -> None:
    row = a_row(digits, test_ncc_forget_acc=None)
    card = model_card(row, None, digits, PAPER)
    matter = front_matter(card)
    assert (matter["library_name"], matter["datasets"]) == ("timm", ["digits"])
    own = dataclasses.replace(
        digits,
        dataset=dataclasses.replace(digits.source, name="mine"),
        architecture=Made("net:small", torch.nn.Identity),
    )
    matter_of_own = front_matter(model_card(row, None, own, PAPER))
    assert matter_of_own["library_name"] == "pytorch"
    assert "datasets" not in matter_of_own  # they are on no hub
    assert "machine-unlearning" in matter["tags"]
    name, results = model_index_to_eval_results(matter["model-index"])
    assert name == "random_label-digits"
    assert [result.metric_value for result in results] == [
        row[key] for key in ("test_retain_acc", "test_forget_acc", "test_attack_auc", "test_probe_forget_acc")
    ]
    assert [result.metric_type for result in results] == ["accuracy", "accuracy", "roc_auc", "accuracy"]
    assert {result.dataset_split for result in results} == {"test"}
    assert "| this model | 90.0 | 77.7 | 0.6540 | 53.1 | - |" in card
    assert "original |" not in card


def test_the_card_names_method_paper_setting_and_forget_set(digits: Scenario) -> None:
    card = model_card(a_row(digits), None, digits, PAPER)
    body = card.split("\n---\n")[1]
    assert body.startswith("\n# random\\_label on digits, without class 8\n")
    assert "Golatkar et al., CVPR 2020" in body
    assert "- lr: 0.0123456789\n- epochs: 5\n- clip: none\n" in body
    assert "hmean on validation: 0.4124" in body
    assert "An output near 0 with a high probe is not forgetting" in body
    samples = model_card(a_row(digits), None, dataclasses.replace(digits, forget=(), forget_share=0.05), PAPER)
    assert "without 5 % of the samples" in samples
    assert "is the aim, not 0" in samples
    frozen = model_card(a_row(digits, train="classifier"), None, digits, PAPER)
    assert "its classifier alone was changed" in frozen


@pytest.mark.parametrize(
    "name",
    ["a: b", "x\n---\nlicense: mit", "# heading | cell", "<script>alert(1)</script>", "'\"{[`*_!@%&", "```\nimport os"],
)
def test_a_name_breaks_neither_yaml_nor_markdown(digits: Scenario, name: str) -> None:
    plain = model_card(a_row(digits), None, digits, PAPER)
    scenario = dataclasses.replace(digits, name=name)
    card = model_card(a_row(scenario), None, scenario, PAPER)
    assert front_matter(card).keys() == front_matter(plain).keys()
    one_line = " ".join(name.split())
    assert front_matter(card)["model-index"][0]["name"] == f"random_label-{one_line}"
    assert snippet(card) == snippet(plain)
    body, plain_body = card.split("\n---\n")[-1].splitlines(), plain.split("\n---\n")[-1].splitlines()
    assert len(body) == len(plain_body)
    # Only the heading holds the name, and it is shown, not obeyed.
    differing = [line for line, other in zip(body, plain_body, strict=True) if line != other]
    assert len(differing) == 1
    assert re.sub(r"\\(.)", r"\1", differing[0]) == f"# random_label on {one_line}, without class 8"
    assert not re.search(r"(?<!\\)[`*_\[\]<>|&]", differing[0])

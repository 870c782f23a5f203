"""Several processes that share an evaluation return what one alone returns. They are real ones, joined by gloo.

Every check is a function of its own that is run by a group of two, by one of three, and by the tests' process alone.
"""

import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raymu import evaluation, splits
from raymu.data.images import Pixels
from raymu.errors import Diverged, Undefined
from raymu.evaluation import layers
from raymu.evaluation import probe as probes
from raymu.evaluation.cka import linear_cka
from raymu.evaluation.membership import mia_auc
from raymu.evaluation.metrics import Metric
from raymu.evaluation.moments import Moments
from raymu.evaluation.probe import LinearProbe
from raymu.evaluation.views import Answered, Said
from raymu.models import architectures, cmf, inference
from raymu.scenario import SCENARIOS
from raymu.splits import HeldOut
from raymu.workers import ALONE, Workers

SECONDS = 90  # that a group may take; one that waits for itself has to fail
IMPORTS = ["raymu.evaluation", "timm", "sklearn.manifold", "sklearn.model_selection"]
CPU = torch.device("cpu")
DIGITS = {
    "class": SCENARIOS["digits"],
    "share": dataclasses.replace(SCENARIOS["digits"], forget=(), forget_share=0.1),
}
Check = Callable[[Workers, Path], Any]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def found_by(check: Check, workers: Workers, directory: Path) -> Any:
    """What it returns; and that all workers are at the same place after it."""
    found = check(workers, directory)
    arrived = torch.ones(())
    workers.sum(arrived)
    assert arrived == workers.count
    return found


def _work(rank: int, count: int, directory: Path) -> None:
    torch.set_num_threads(1)
    meet = f"file://{directory}/meet-{count}"
    dist.init_process_group("gloo", meet, timedelta(seconds=SECONDS), world_size=count, rank=rank)
    found = {check.__name__: found_by(check, Workers(), directory) for check in CHECKS}
    torch.save(found, directory / f"found-{count}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the weights of the models are that all processes evaluate."""
    base = tmp_path_factory.mktemp("workers")
    torch.set_num_threads(1)
    loaded = splits.load(DIGITS["class"], CPU)
    original = trained(loaded.train, seed=0)
    weights = {"original": original, "retrained": trained(loaded.train.subset(~loaded.forget), seed=1)}
    head = cmf.CMF(architectures.build(DIGITS["class"], 0), 10, 16.0)
    head.backbone.load_state_dict(original.state_dict())
    head.update(*head.class_sums(loaded))
    weights["cmf"] = head
    weights["unlearned"] = original
    states = {
        name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in weights.items()
    }
    states["unlearned"]["fc.bias"][8] -= 1.0
    torch.save(states, base / "weights.pt")
    return base


def trained(split: splits.Split, seed: int) -> nn.Module:
    model = architectures.build(DIGITS["class"], seed).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = split.read(), split.targets
    for epoch in range(3):
        for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def load(directory: Path, name: str) -> Any:
    """One of the models."""
    model: nn.Module = architectures.build(DIGITS["class"], 0)
    if name == "cmf":
        model = cmf.CMF(model, 10, 16.0)
    model.load_state_dict(torch.load(directory / "weights.pt", weights_only=True)[name])
    return model


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def group(request: pytest.FixtureRequest, directory: Path) -> list[dict[str, Any]]:
    """What every process of a group found, by check."""
    count = request.param
    mp.set_forkserver_preload(IMPORTS)  # which take most of the time, once for all groups
    processes = mp.start_processes(_work, (count, directory), count, join=False, start_method="forkserver")
    until = time.monotonic() + SECONDS
    while not processes.join(timeout=max(0.0, until - time.monotonic())):
        if time.monotonic() > until:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"{count} processes are not done after {SECONDS} s")
    return [torch.load(directory / f"found-{count}-{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def alone(directory: Path) -> dict[str, Any]:
    """What this process finds alone, by check."""
    return {check.__name__: found_by(check, Workers(), directory) for check in CHECKS}


# What they do together


@check
def workers_alone(workers: Workers, directory: Path) -> list[Any]:
    everyone = torch.arange(10, 17)
    kept = torch.tensor([workers.rank])
    ALONE.sum(kept)
    return [ALONE.rank, ALONE.count, ALONE.shard(everyone).tolist(), kept.tolist(), ALONE.gather(kept).tolist()]


@check
def collectives(workers: Workers, directory: Path) -> dict[str, Any]:
    one, two = torch.tensor(workers.rank + 0.5), torch.full((2, 2), workers.rank)
    workers.sum(one, two)
    everyone = torch.arange(20, 28).unsqueeze(1)
    share = workers.shard(everyone)
    built: list[str | None] = []

    def build(entry: Path | None) -> None:
        together = torch.ones(())
        workers.sum(together)
        built.append(None if entry is None else "filled")
        if entry is not None:
            (entry / "content").write_text(str(int(together)))

    entries = [workers.once(directory / f"entry-{workers.count}", build) for _ in range(2)]
    return {
        "place": [workers.rank, workers.count],
        "sums": [one.item(), two.tolist()],
        "share": share.squeeze(1).tolist(),
        "gathered": workers.gather(share).squeeze(1).tolist(),
        "of uneven length": workers.gather(torch.full((2 * workers.rank,), workers.rank)).tolist(),
        "of none": list(workers.gather(torch.zeros(0, 3)).shape),
        "told": workers.broadcast({"rank": workers.rank}),
        "built": built,
        "content": (entries[1] / "content").read_text(),
    }


def test_shares_are_consecutive_and_nothing_is_lost(group: list[dict[str, Any]]) -> None:
    count, found = len(group), [one["collectives"] for one in group]
    assert [one["place"] for one in found] == [[rank, count] for rank in range(count)]
    assert [row for one in found for row in one["share"]] == list(range(20, 28))
    assert {len(one["share"]) for one in found} <= {8 // count, 8 // count + 1}
    for one in found:
        assert one["sums"] == [count**2 / 2, [[count * (count - 1) // 2] * 2] * 2]
        assert one["gathered"] == list(range(20, 28))
        assert one["of uneven length"] == [rank for rank in range(count) for _ in range(2 * rank)]
        assert one["of none"] == [0, 3]
        assert one["told"] == {"rank": 0}


def test_what_is_missing_is_built_once_by_all(group: list[dict[str, Any]]) -> None:
    found = [one["collectives"] for one in group]
    assert [one["built"] for one in found] == [["filled"], *[[None]] * (len(group) - 1)]
    assert {one["content"] for one in found} == {str(len(group))}


def test_alone_is_alone_in_a_group_too(group: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(group):
        assert one["workers_alone"] == [0, 1, list(range(10, 17)), [rank], [rank]]


# Moments and metrics of arrays


def uneven(workers: Workers, rows: Tensor, first: int = 13) -> Tensor:
    """The part of a worker: the first so many rows, none in the middle, or all others."""
    return rows.tensor_split([first] * (workers.count - 1))[workers.rank]


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@check
def moments(workers: Workers, directory: Path) -> dict[str, Tensor]:
    """There is a class that only the first sees."""
    features, labels = noise(40, 3), torch.cat([torch.zeros(13), torch.arange(27) % 2 + 1]).long()
    features, labels = uneven(workers, features), uneven(workers, labels)
    whole = Moments.of(features, labels, workers)
    return {"within": whole.within, "means": whole.means, "classes": whole.classes}


@check
def metrics_of_arrays(workers: Workers, directory: Path) -> dict[str, Tensor]:
    x, y, labels = noise(90, 5), noise(90, 9, seed=1), torch.arange(90) % 5
    rows = uneven(workers, torch.arange(90))
    x[:, 0] += y[:, 0]
    members, unseen = rows[rows % 3 == 0], rows[rows % 3 > 0]
    found = [
        linear_cka(x[rows], y[rows], workers),
        mia_auc(x[members] + 1, labels[members], y[unseen], labels[unseen], workers),
        evaluation.accuracy(x[rows].argmax(1), labels[rows], workers),
    ]
    return {"found": torch.tensor(found, dtype=torch.float64)}


@pytest.mark.parametrize("name", ["moments", "metrics_of_arrays"])
def test_parts_add_up(name: str, group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for one in group:
        for key, expected in alone[name].items():
            torch.testing.assert_close(one[name][key], expected)


@check
def undefined(workers: Workers, directory: Path) -> list[str]:
    """One worker has what is wrong; all have to say so."""
    features, labels = noise(40, 3), torch.arange(40) % 2
    spoilt = features.clone()
    spoilt[-1, 1] = torch.nan
    mine, bad, their = (uneven(workers, rows) for rows in (features, spoilt, labels))
    logits = mine[their == 0], their[their == 0], bad[their == 1], their[their == 1]
    said = []
    for metric in (
        lambda: Moments.of(bad, their, workers),
        lambda: LinearProbe(bad, their, workers=workers),
        lambda: linear_cka(mine, bad, workers),
        lambda: linear_cka(mine, torch.ones_like(mine), workers),
        lambda: mia_auc(*logits, workers),
        lambda: mia_auc(mine[:0], their[:0], mine, their, workers),
        lambda: Moments.of(mine[:0], their[:0], workers),
        lambda: linear_cka(mine[:0], mine[:0], workers),
        lambda: evaluation.accuracy(their[:0], their[:0], workers),
    ):
        with pytest.raises(Undefined) as caught:
            metric()
        said.append(str(caught.value))
    return said


def test_what_is_undefined_is_so_for_all(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert len(alone["undefined"]) == 9
    for one in group:
        assert one["undefined"] == alone["undefined"]


# The strong probe


def problem(name: str) -> tuple[Tensor, Tensor]:
    """Features and labels of overlapping classes."""
    if name == "more features than samples":
        labels = torch.arange(90) % 3
        return noise(3, 200, seed=9)[labels].float() / 3 + noise(90, 200).float(), labels
    labels = (torch.arange(900) % 6).sort().values  # a worker does not see all classes
    features = noise(6, 20, seed=9)[labels] / 2 + noise(900, 20)
    if name == "ill-conditioned":
        features = torch.cat([features[:, :1] * 1e6, features, features[:, 1:2], torch.full((900, 1), 7.0)], dim=1)
    if name == "long-tailed":  # where the penalty matters
        features = (features / 2).exp()
    return features.float(), labels


PROBLEMS = ("more features than samples", "ill-conditioned", "long-tailed")


@check
def strong_probe(workers: Workers, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in PROBLEMS:
        features, labels = problem(name)
        for cut in (workers.shard, lambda rows: uneven(workers, rows, 5)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(probes, "PART", 300)
                patch.setattr(probes, "PER_CLASS", 10)
                probe = LinearProbe(cut(features), cut(labels), workers=workers)
            found.setdefault(name, []).append((probe.penalty, workers.gather(probe.predict(cut(features)))))
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_probe_is_that_of_one_alone(name: str, group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    expected_penalty, expected = alone["strong_probe"][name][0]
    assert expected_penalty is not None
    for one in group:
        for penalty, answers in one["strong_probe"][name]:
            assert penalty == expected_penalty
            assert (answers != expected).sum() <= 1


@check
def others_who_would_never_stop(workers: Workers, directory: Path) -> Tensor:
    """They stand for workers that round differently."""
    features, labels = (workers.shard(rows) for rows in problem("long-tailed"))
    with pytest.MonkeyPatch.context() as patch:
        if workers.rank:
            for name, value in (("ROUGH", 0.0), ("EXACT", 0.0), ("SUFFICIENT", 1e9)):
                patch.setattr(probes, name, value)
        probe = LinearProbe(features, labels, workers=workers)
    return workers.gather(probe.predict(features))


def test_the_first_says_when_the_fit_is_done(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    expected = alone["others_who_would_never_stop"]
    for one in group:
        assert (one["others_who_would_never_stop"] != expected).sum() <= 1


# Models


def confidence(forget: Answered, unseen: Said) -> float:
    """Of a user's who knows nothing of workers."""
    return sum(said.logits.softmax(1).gather(1, said.labels[:, None]).sum().item() for said in (forget, unseen))


def drift(both: Answered, original: Tensor) -> float:
    """The two have to be in one order."""
    return (both.features - original).norm(dim=1).mean().item()


OWN = (Metric(confidence, rung=False), Metric(drift))
CASES = {"linear head": ("class", "unlearned"), "CMF head": ("class", "cmf"), "samples": ("share", "unlearned")}


@check
def evaluations(workers: Workers, directory: Path) -> dict[str, Any]:
    found = {}
    for case, (scenario, name) in CASES.items():
        loaded, model = splits.load(DIGITS[scenario], CPU), load(directory, name)
        baseline = evaluation.baseline({which: load(directory, which) for which in ("original", "retrained")}, loaded)
        row = evaluation.evaluate(model, loaded, baseline, OWN)
        found[case] = {"baseline": baseline, "evaluate": row, "quick": evaluation.evaluate_quickly(model, loaded)}
    return found


def assert_same(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, but for rounding: a few images may lie on the border of two answers."""
    assert row.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float):
            border = 1e-9
            if key.endswith(("_acc", "_nc4")):
                border = 0.02 if "forget" in key else 0.006  # of 61 images, of 568
            assert row[key] == pytest.approx(value, rel=1e-5, abs=border), key
        else:
            assert row[key] == value, key


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_one_alone(case: str, group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    expected = alone["evaluations"][case]
    assert expected["evaluate"]["test_forget_acc"] < 0.9 or case == "samples"  # or nothing would be to be found
    for one in group:
        found = one["evaluations"][case]
        for measure in ("evaluate", "quick"):
            assert found[measure] == group[0]["evaluations"][case][measure]
            assert_same(found[measure], expected[measure])
        assert found["baseline"].keys() == expected["baseline"].keys()
        for name, tensor in expected["baseline"].items():
            torch.testing.assert_close(found["baseline"][name], tensor, rtol=1e-5, atol=1e-5)


@check
def profiles(workers: Workers, directory: Path) -> list[dict[str, Any]]:
    return evaluation.profile(load(directory, "unlearned"), splits.load(DIGITS["class"], CPU))


def test_profiles_are_those_of_one_alone(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for one in group:
        for found, expected in zip(one["profiles"], alone["profiles"], strict=True):
            assert_same(found, expected)


@check
def pictures(workers: Workers, directory: Path) -> dict[str, Any]:
    return evaluation.tsne({"original": load(directory, "original")}, splits.load(DIGITS["class"], CPU))


def test_all_see_the_same_picture(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Of the same images; t-SNE makes much of what is rounded."""
    for one in group:
        assert one["pictures"] == group[0]["pictures"]
        assert one["pictures"]["labels"] == alone["pictures"]["labels"]
        assert len(one["pictures"]["original"]["x"]) == len(alone["pictures"]["original"]["x"])


@check
def class_sums(workers: Workers, directory: Path) -> list[Tensor]:
    sums, counts = load(directory, "cmf").class_sums(splits.load(DIGITS["class"], CPU))
    workers.sum(sums, counts)
    return [sums, counts]


def test_class_sums_are_those_of_one_alone(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for one in group:
        torch.testing.assert_close(one["class_sums"], alone["class_sums"], rtol=1e-5, atol=1e-5)


# A share that is empty, and one that is not finite


@check
def one_image(workers: Workers, directory: Path) -> dict[str, Any]:
    """All forget parts have one image."""
    loaded, model = splits.load(DIGITS["class"], CPU), load(directory, "unlearned")
    one = torch.tensor([3])
    held_out = {
        name: HeldOut(split.retain, split.forget.subset(one))
        for name, split in (("val", loaded.val), ("test", loaded.test))
    }
    loaded = dataclasses.replace(loaded, **held_out)
    baseline = evaluation.baseline({which: load(directory, which) for which in ("original", "retrained")}, loaded)
    (said,) = inference.extract(model, loaded, loaded.val.forget)
    return {
        "row": evaluation.evaluate(model, loaded, baseline),
        "layer": evaluation.profile(model, loaded)[0],
        "shapes": [list(tensor.shape) for tensor in said],
        "logits": workers.gather(said.logits),
        "read": [[len(images), len(labels)] for images, labels in inference.batches(loaded, loaded.val.forget)],
        "blocks": [len(block) for block in layers._blocks(model, loaded, loaded.val.forget)],
    }


def test_a_share_may_be_empty(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    (_, width), (_, classes), _ = alone["one_image"]["shapes"]
    assert alone["one_image"]["row"]["val_mia_auc"] is None
    for rank, one in enumerate(group):
        found, count = one["one_image"], int(rank == 0)
        assert found["shapes"] == [[count, width], [count, classes], [count]]
        assert found["read"] == [[1, count]]  # not every model takes no image at all
        assert set(found["blocks"]) == {count}
        torch.testing.assert_close(found["logits"], alone["one_image"]["logits"], rtol=1e-5, atol=1e-5)
        assert_same(found["row"], alone["one_image"]["row"])
        assert_same(found["layer"], alone["one_image"]["layer"])


class Spoilt(Pixels):
    """One image is not finite."""

    def __init__(self, images: Pixels, position: Tensor) -> None:
        self.pixels, self.shape, self.mean, self.std = images.pixels, images.shape, images.mean, images.std
        self.position = position

    def read(self, batches: Any) -> Any:
        batches = list(batches)
        for (rows, _), images in zip(batches, super().read(batches), strict=True):
            images[rows == self.position] = torch.nan
            yield images


@check
def divergences(workers: Workers, directory: Path) -> list[str]:
    loaded, model = splits.load(DIGITS["class"], CPU), load(directory, "unlearned")
    said = []
    for position in (loaded.train.index[-1], loaded.val.retain.index[0]):  # in the last's share, and in the first's
        images = Spoilt(loaded.train.images, position)
        train, retain = (dataclasses.replace(split, images=images) for split in (loaded.train, loaded.val.retain))
        spoilt = dataclasses.replace(loaded, train=train, probed=train, val=HeldOut(retain, loaded.val.forget))
        for measure in (
            lambda spoilt=spoilt: evaluation.evaluate_quickly(model, spoilt),
            lambda spoilt=spoilt: evaluation.evaluate(model, spoilt, {}),
        ):
            try:
                measure()
            except Diverged as divergence:
                said.append(str(divergence))
    return said


def test_all_agree_on_a_divergence(group: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert len(alone["divergences"]) == 4
    for one in group:
        assert one["divergences"] == alone["divergences"]

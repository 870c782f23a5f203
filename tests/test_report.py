"""The report, opened in a real browser; its figures at known answers."""

import itertools
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymu.errors import InputError
from raymu.results import figures, outputs, report, search_figures, style, tables, verdict
from raymu.results.changes import Storage, changes
from raymu.results.comparison import Estimate, Lead
from raymu.results.ranking import FIXED, Figures, Ranked
from raymu.results.reader import SweepResults, search_rows
from raymu.trial import unmeasured

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome in PATH")

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
SPACE = {
    "lr": {"low": 1e-5, "high": 1e-1, "scale": "log"},
    "epochs": {"low": 1, "high": 10, "scale": "int"},
    "salient": {"low": 0.1, "high": 0.9, "scale": "linear"},
}
ACCURACIES = ("retain_acc", "forget_acc", "probe_retain_acc", "probe_forget_acc", "ncc_retain_acc", "ncc_forget_acc")
REFERENCES = {
    "original": {f"{split}_{metric}": 0.95 for split in ("val", "test") for metric in ACCURACIES},
    "retrained": {f"{split}_{metric}": 0.8 for split in ("val", "test") for metric in ACCURACIES}
    | {"val_forget_acc": 0.0, "test_forget_acc": 0.0, "test_ncc_forget_acc": None},
    "dead": {f"{split}_{metric}": 0.1 for split in ("val", "test") for metric in ACCURACIES},
}


def make_row(name: str, trial: int, skill: float, source: str = "search", seed: int = 0, model_seed: int = 0) -> dict:
    """A row such as a trial writes. Better settings have an lr near 0.001."""
    rng = random.Random(f"{name} {trial} {seed} {model_seed}")
    lr = 10 ** rng.uniform(-5, -1) if trial else 1e-4
    good = skill * math.exp(-((math.log10(lr) + 3) ** 2) / 2) * rng.uniform(0.9, 1)
    row: dict[str, Any] = {**unmeasured(), "trial_id": f"{name}-{trial:04d}", "sweep": name, "trial": trial}
    row |= {"source": source, "method": "salun", "scenario": "digits", "scenario_hash": f"hash{model_seed}"}
    row |= {"forget": [8], "forget_share": 0.0, "head": "linear", "train": "all", "seed": seed, "threads": 1}
    row |= {"search_seed": 0, "model_seed": model_seed, "objective": "hmean", "status": "completed", "error": None}
    row |= {"config": {"lr": lr, "epochs": rng.randint(1, 10), "salient": rng.uniform(0.1, 0.9), "clip": None}}
    row |= {"unlearn_s": 20 * rng.random(), "evaluate_s": 3 * rng.random(), "images": rng.randint(100, 10000)}
    for split in ("val", "test"):
        row[f"{split}_retain_acc"] = 0.97 - 0.2 * good * rng.random()
        row[f"{split}_forget_acc"] = 0.9 * (1 - good) ** 3
        row[f"{split}_probe_forget_acc"] = 0.95 - 0.6 * good
    keep, forget = row["val_retain_acc"], 1 - row["val_probe_forget_acc"]
    row["score"] = 2 * keep * forget / (keep + forget)
    if trial % 5 == 3:
        row |= {"status": "stopped"}
    if trial % 11 == 7:
        row |= {**unmeasured(), "status": "diverged", "score": 0.0}
    if trial % 13 == 9:
        row |= {**unmeasured(), "status": "error", "score": None, "error": f"ValueError: {EVIL}"}
    return row


def make_sweep(name: str, skill: float, trials: int = 25, originals: int = 3, pictures: bool = False) -> SweepResults:
    rows = [make_row(name, trial, skill, "search" if trial else "published") for trial in range(trials)]
    rows += [make_row(name, 1, skill, "confirmation", 1000 + m, model_seed=m) for m in range(originals)]
    identity = {"raymu": "0.1.0", "method": "salun", "head": "linear", "train": "all", "space": SPACE}
    identity["scenario"] = {"name": f"digits {EVIL}", "dataset": "digits", "architecture": "resnet", "forget": [8]}
    identity["protocol"] = {"trials": trials, "seed": 0, "objective": "hmean", "scheduler": "asha"}
    environment = {"versions": {"python": EVIL, "torch": "2.8"}, "git": {"commit": None, "dirty": True}}
    references = {f"hash{m}": REFERENCES for m in range(max(originals, 1))}
    return SweepResults(name, identity, environment, references, make_features() if pictures else None, rows)


def make_features() -> dict[str, Any]:
    rng = random.Random(0)
    labels = [i % 10 for i in range(200)]
    cluster = {c: (10 * math.cos(c), 10 * math.sin(c)) for c in range(10)}
    maps = {
        model: {axis: [cluster[c][k] + rng.gauss(0, spread) for c in labels] for k, axis in enumerate("xy")}
        for model, spread in (("original", 1), ("retrained", 2), ("tuned", 3))
    }
    return {"trial_id": "x-0001", "forget": [8], "labels": labels, **maps}


UNKNOWN, CLEAR = Lead(0.1, None, None), Lead(0.1, 0.05, 0.15)


def make_ranked(sweeps: list[SweepResults], runs: int = 3) -> list[Ranked]:
    """The best of each search, with intervals of a made-up width."""

    def estimate(value: float | None) -> Estimate:
        mean = math.nan if value is None else value
        low, high = (mean - 0.02, mean + 0.02) if runs else (None, None)
        return Estimate(mean, low, high, runs, runs)

    def figures_of(row: dict, score: float | None = None) -> Figures:
        metrics = {f"test_{metric}": estimate(row[f"test_{metric}"]) for metric in ACCURACIES}
        return Figures(estimate(score), metrics, (313, 316))

    ranked = []
    for sweep in sweeps:
        search = [row for row in search_rows(sweep) if row["status"] == "completed"]
        if search:
            best, published = max(search, key=lambda row: row["score"]), search[0]
            of = {"tuned": figures_of(best, best["score"]), "published": figures_of(published, published["score"])}
            of |= {which: figures_of(REFERENCES[which]) for which in FIXED}
            ranked.append(Ranked(0, 0, 0, UNKNOWN, sweep, best, published, of))
    ranked.sort(key=lambda entry: -entry.score.mean)
    return [entry._replace(rank=i, first=1, last=len(ranked)) for i, entry in enumerate(ranked, start=1)]


@pytest.fixture(scope="module")
def sweeps() -> list[SweepResults]:
    """Three methods, one of them not confirmed and one with a name that attacks the page, and one that all failed."""
    lost = make_sweep("lost", 0.5, originals=0)
    lost = lost._replace(rows=[make_row("lost", 9, 0.5), make_row("lost", 7, 0.5)])
    return [
        make_sweep("salun", 0.7),
        make_sweep(EVIL, 0.9, pictures=True),
        make_sweep("<b>ssd</b>", 0.4, originals=0),
        lost,
    ]


@pytest.fixture(scope="module")
def page(sweeps: list[SweepResults], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    ranked = make_ranked(sweeps)
    single = [make_ranked([ranked[2].sweep], runs=0)[0]]
    single[0].figures["published"] = None
    report.write([report.Chapter(sweeps, ranked[:2] + single)], path.parent, path.name)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=arguments)


DRAWN = """() => [...document.querySelectorAll(".js-plotly-plot")].map((plot) => {
    const {width, height} = plot.querySelector("svg.main-svg").getBoundingClientRect();
    const marks = plot.querySelectorAll(".scatterlayer path, .scatterlayer text, .barlayer path").length;
    return {width, height, marks, box: plot.getBoundingClientRect().height};
})"""


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_quiet_complete_and_fits(browser: Any, page: Path, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 800})
    trouble: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    tab.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 9")
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tab.wait_for_function(f"({DRAWN})().every((plot) => plot.width > 300)")
    plots = tab.evaluate(DRAWN)
    assert trouble == []
    assert requests == [page.as_uri()]
    assert len(plots) == 4 + 4 + 1  # the common ones, hyperparameters a sweep, features
    assert all(plot["width"] > 300 and plot["height"] > 100 and plot["marks"] > 0 for plot in plots)
    assert all(plot["height"] <= plot["box"] + 1 for plot in plots), "a plot that covers what follows it"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    smallest = (
        "Math.min(...[...document.querySelectorAll('body *')].map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert tab.evaluate(smallest) >= 11
    assert tab.locator("img").count() == 0  # the name is text, wherever it stands
    assert EVIL in tab.inner_text("h2")
    assert "<b>ssd</b>" in tab.locator(".legend text").all_text_contents()
    text = tab.inner_text("body")
    for part in (
        "lost: no completed trial (1 error, 1 diverged; first error: ValueError",
        "Fewer than 5",
        "1 (1-3)",
        "not conf",
    ):
        assert part in text


@needs_browser
def test_the_first_screen_answers_and_the_rest_is_found(browser: Any, page: Path) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    tab.goto(page.as_uri())
    bottom = tab.evaluate("document.querySelector('nav').getBoundingClientRect().bottom")
    assert bottom < 900  # verdict, warnings and contents stand above it
    assert tab.locator("dl.verdict dt").all_inner_texts() == [
        "Highest",
        "Lead",
        "Scale",
        "Measured on",
        "Budget",
        "Next",
    ]
    assert "313 retain and 316 forget images of test" in tab.inner_text("dl.verdict")
    links = tab.eval_on_selector_all("nav a", "(all) => all.map((one) => one.getAttribute('href'))")
    assert all(tab.locator(f"main section[id='{link[1:]}']").count() == 1 for link in links)
    assert tab.locator("th:not([scope])").count() == 0
    captions = tab.locator("figcaption").all_text_contents()  # also of folded ones
    assert [text.split(".")[0] for text in captions] == [f"Figure {number}" for number in range(1, 10)]
    red, green, blue = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert max(red, green, blue) < 60


def test_sweeps_that_do_not_compare_are_chapters(sweeps: list[SweepResults], tmp_path: Path) -> None:
    chapters = [
        report.Chapter([one], make_ranked([one]), apart) for one, apart in zip(sweeps, ("", "other"), strict=False)
    ]
    report.write(chapters, tmp_path, "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<article") == 2
    assert re.findall(r"href=\"#(g\d-headline)\"", text) == re.findall(r"h2 id=\"(g\d-headline)\"", text)
    assert "Not compared with the first group: other." in text
    assert len(set(re.findall(r'id="(plot-\d+)"', text))) == text.count('<div class="plot" id="plot-')


def test_figures_say_their_titles_and_a_page_is_a_link(sweeps: list[SweepResults], tmp_path: Path) -> None:
    drawn = list(report.drawings(sweeps, make_ranked(sweeps)))
    plots = outputs.Plots(drawn)
    assert len(plots) == len(drawn)
    assert plots["tradeoff"].layout.title.text == "Retain against probe-forget accuracy"
    assert plots["tradeoff"].layout.height == drawn[0].figure.layout.height
    assert drawn[0].figure.layout.title.text is None
    assert {"illusion", "hyperparameters of salun"} <= plots.keys()
    assert repr(plots).startswith("Plots(tradeoff, illusion, comparison, ")
    link = outputs.Page(Path("<b>&") / "a page.html", [])._repr_html_()
    assert link == '<a href="%3Cb%3E%26/a%20page.html" target="_blank">&lt;b&gt;&amp;/a page.html</a>'


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two storages, with a method that both have and is better in one, and others."""
    path = tmp_path_factory.mktemp("compared") / "report.html"
    sides = []
    for storage, skills in ((EVIL, {"salun": 0.7, "ssd": 0.5}), ("new", {"salun": 0.9, "ssd": 0.52, "scrub": 0.4})):
        of = [make_sweep(name, skill) for name, skill in skills.items()]
        for sweep in of:
            sweep.identity["method"], sweep.identity["protocol"]["trials"] = sweep.name, len(skills)
        sides.append(Storage(storage, of, make_ranked(of)))
        for entry in sides[-1].ranked:
            for row in entry.sweep.rows:
                row["confirms"] = entry.tuned["trial_id"] if row["source"] == "confirmation" else None
    chapters = [report.Chapter(side.sweeps, side.ranked, "", side.name) for side in sides]
    report.write(chapters, path.parent, path.name, [changes(*sides)])
    return path


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_storages_side_by_side_begin_with_what_changed(browser: Any, compared: Path, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble: list[str] = []
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.goto(compared.as_uri())
    assert "Without an interval" not in tab.inner_text("h2 >> nth=0")
    table = tab.locator("[aria-label='What changed']")
    assert table.evaluate("(one) => one.getBoundingClientRect().top") < 900
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    headings = table.locator("thead th").all_inner_texts()
    assert headings[:4] == ["method", "difference", "hmean there", "hmean here"]
    lines = [line.all_inner_texts() for line in table.locator("tbody tr").all()]
    assert [line[0].split("\t")[0].split("\n")[0] for line in lines] == ["salun", "ssd"]
    assert all("3 originals" in line[0] for line in lines)
    facts = tab.inner_text("dl.verdict >> nth=0")
    assert EVIL in facts
    assert "protocol.trials is 2 there, 3 here" in facts
    assert "scrub" in facts
    assert tab.locator("article").count() == 2
    assert tab.locator("img").count() == 0
    links = tab.eval_on_selector_all("nav a", "(all) => all.map((one) => one.getAttribute('href'))")
    assert all(tab.locator(f"[id='{link[1:]}']").count() == 1 for link in links)
    assert tab.locator("th:not([scope])").count() == 0
    assert trouble == []


@pytest.mark.long
@needs_browser
def test_plots_follow_the_width_of_the_window(browser: Any, page: Path) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for width, smallest in ((400, 360), (1280, 1000)):
        tab.set_viewport_size({"width": width, "height": 800})
        drawn = "[...document.querySelectorAll('.js-plotly-plot svg.main-svg')].map((svg) => svg.clientWidth)"
        tab.wait_for_function(f"{drawn}.every((drawn) => drawn > {smallest} && drawn < {width})", timeout=20_000)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_a_copied_config_is_the_tuned_row(browser: Any, page: Path, sweeps: list[SweepResults]) -> None:
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.locator("summary").first.click()
    tab.locator(".config button").first.click()
    tab.wait_for_selector("button:has-text('Copied')")
    copied = yaml.safe_load(tab.evaluate("navigator.clipboard.readText()"))
    tuned = make_ranked(sweeps)[0].tuned
    assert copied["config"] == tuned["config"]
    assert copied == report.config(tuned)


def test_nothing_completed_is_a_page_too(sweeps: list[SweepResults], tmp_path: Path) -> None:
    report.write([report.Chapter([sweeps[3]], [])], tmp_path, "report.html")
    assert "No trial completed" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="cannot write"):
        report.write([report.Chapter([sweeps[3]], [])], tmp_path / "missing", "report.html")


def test_searches_are_counted_by_their_seeds() -> None:
    sweep = make_sweep("salun", 0.5)
    rows = [row | {"search_seed": row["trial"] % 2} for row in sweep.rows]
    drawn = list(report.drawings([sweep._replace(rows=rows)], []))
    assert any(f"{len(search_rows(sweep))} trials of 2 searches" in drawing.caption for drawing in drawn)


def test_holes_in_what_is_known_break_nothing(tmp_path: Path) -> None:
    bare = make_sweep("bare", 0.5)._replace(identity={}, references={}, environment={}, features=make_features())
    bare.features["tuned"]["x"][0] = None
    for row in bare.rows:
        row |= {"val_retain_acc": math.nan, "test_forget_acc": None, "unlearn_s": None}
        del row["search_seed"], row["model_seed"], row["val_forget_acc"]
    gone = make_sweep("gone", 0.5)
    for row in gone.rows:
        row["config"]["salient"] = None
    ranked = [entry._replace(published=None) for entry in make_ranked([bare, gone])]
    for entry in ranked:
        nothing = {"published": None, "original": None, "tuned": Figures(entry.score, {}, None)}
        entry.figures.update(nothing)
    report.write([report.Chapter([bare, gone], ranked)], tmp_path, "report.html")
    assert ">nan<" not in (tmp_path / "report.html").read_text().lower()


def test_the_headline_claims_no_more_than_the_ranks(sweeps: list[SweepResults]) -> None:
    first, second, third = make_ranked([make_sweep("b", 0.9), make_sweep("a", 0.6), make_sweep("c", 0.3)])
    clear = third._replace(behind=CLEAR)
    assert verdict.headline([first, second, clear]).endswith("Nothing tells it from a.")
    assert verdict.headline([first, second, third]).endswith("Nothing tells it from a and c.")
    assert verdict.headline([first, *[second] * 5]).endswith("Nothing tells it from 5 others.")
    won = verdict.headline([first, second._replace(behind=CLEAR), clear])
    assert won.startswith("b is first (hmean 0.")
    assert won.endswith("0.100 [0.050, 0.150] ahead of a.")
    alone = [first, second]
    unconfirmed = make_ranked([entry.sweep for entry in alone], runs=0)
    assert "by a single run, so no place is certain" in verdict.headline(unconfirmed)
    assert [line[:21] for line in verdict.cautions(sweeps, unconfirmed)] == ["Nothing was confirmed"]
    assert unconfirmed[0].published is not None
    unconfirmed[0].published["fallback"] = True
    assert list(verdict.cautions(sweeps, unconfirmed))[-1].startswith("“Published” is a fallback (b)")


def test_what_ended_badly_or_has_no_memory_is_said(sweeps: list[SweepResults]) -> None:
    first, second, third = make_ranked([make_sweep("b", 0.9), make_sweep("a", 0.6), make_sweep("c", 0.3)])
    equal = second._replace(rank=1)
    assert verdict.headline([first, equal, third._replace(behind=CLEAR)]).startswith("Highest mean: b and a (hmean")
    ended = {"confirms": first.tuned["trial_id"], "scenario_hash": "other"}
    for status in ("error", "diverged", "diverged"):
        first.sweep.rows.append({**ended, "status": status})
    said = list(verdict.cautions(sweeps, [first, second]))
    runs = first.score.runs
    assert f"b: 1 of its runs failed, so all are ranked by the runs that all have ({runs})." in said
    assert f"b: 2 of its {runs} runs diverged: they score 0, other columns are of the rest." in said

    def with_memory(difference: float) -> Ranked:
        memory = {"test": {"original": 0.9 + difference, "retrained": 0.9, "error": 0.01}}
        known = {one["scenario_hash"]: {"memory": memory} for one in second.sweep.rows}
        return second._replace(sweep=second.sweep._replace(references=known))

    said = verdict.verdict([with_memory(0.1).sweep], [second])["Memory to remove"]
    assert said.endswith("known to ± 20 %")
    assert verdict.headline([with_memory(0.1)]).startswith("a: hmean")
    assert verdict.headline([with_memory(0.01)]).startswith("No verdict: memory is within noise")
    assert verdict.verdict([with_memory(0.01).sweep], [with_memory(0.01)])["Next"].startswith("forget other or more")


def test_without_a_retrained_model_tables_say_so(sweeps: list[SweepResults]) -> None:
    known, *others = make_ranked(sweeps)
    alone = known._replace(figures=known.figures | {"retrained": None})
    for ranked, is_said in (([known, *others], False), ([alone, *others], True)):
        shown = (tables.ranking(ranked, 80), tables.comparison(ranked[0].figures, "hmean", 80))
        assert [tables.NO_RETRAINED in str(table.caption) for table in shown] == [is_said, is_said]
        assert any(tables.NO_RETRAINED in line for line in verdict.cautions(sweeps, ranked)) is is_said
    assert "retrained" not in tables.comparison(alone.figures, "hmean", 80).columns[0].cells


def test_a_score_of_0_wins_nothing_and_one_above_the_ideal_is_warned_of(sweeps: list[SweepResults]) -> None:
    first, second, *_ = make_ranked(sweeps)

    def scoring(score: float, entry: Ranked = first) -> Ranked:
        of = entry.figures | {"tuned": entry.figures["tuned"]._replace(score=Estimate(score, None, None, 9, 3))}
        ideal = entry.figures["retrained"]._replace(score=Estimate(0.5, None, None, 9, 3))
        return entry._replace(figures=of | {"retrained": ideal})

    nothing = [scoring(0.0), scoring(0.0, second)]
    assert verdict.headline(nothing) == "Nobody won: no tuned setting has hmean above 0 on test."
    said = verdict.verdict(sweeps, nothing)
    assert not {"Winner", "Highest", "Lead"} & set(said)
    assert said["Next"].startswith("search longer")
    above, below = ([scoring(score)] for score in (0.51, 0.5))
    assert any("above the retrained model (0.500)" in line for line in verdict.cautions(sweeps, above))
    assert not any("above the retrained" in line for line in verdict.cautions(sweeps, below))


def test_what_differs_stands_with_the_names_of_the_sweeps() -> None:
    one, other = make_sweep("a", 0.5, trials=12), make_sweep("b", 0.5, trials=25)
    assert report.facts([one, other])["protocol.trials"] == {"12": ["a"], "25": ["b"]}
    assert report.facts([one, other])["protocol.scheduler"] == {"asha": ["a", "b"]}


@pytest.mark.long
@needs_browser
def test_every_figure_as_png(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    sweeps = [make_sweep(EVIL, 0.7, trials=6, pictures=True)]
    paths = report.write_png([report.Chapter(sweeps, make_ranked(sweeps))], tmp_path / "png")
    assert [path.name[:8] for path in paths][:4] == ["01-trade", "02-illus", "03-compa", "04-effor"]
    assert {path.parent for path in paths} == {tmp_path / "png"}
    assert sorted(paths) == sorted((tmp_path / "png").iterdir())
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths)


def test_png_without_a_browser_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    sweeps = [make_sweep("a", 0.7, trials=3)]
    with pytest.raises(InputError, match="apt install chromium"):
        report.write_png([report.Chapter(sweeps, make_ranked(sweeps))], tmp_path)


def test_pareto_front_of_points() -> None:
    points = [(0.5, 0.9), (0.2, 0.6), (0.5, 0.8), (0.3, 0.6), (0.1, 0.1), (0.9, 0.9), (0.2, 0.6), (0.95, 1.0)]
    assert figures.pareto(points) == [(0.1, 0.1), (0.2, 0.6), (0.5, 0.9), (0.95, 1.0)]
    assert figures.pareto([]) == []


def test_expected_best_is_the_mean_over_all_draws() -> None:
    scores = [0.3, 0.0, 0.9, 0.3, 0.6]
    for n, best in enumerate(search_figures.expected_best(scores, range(1, 6)), start=1):
        outcomes = [max(drawn) for drawn in itertools.product(scores, repeat=n)]
        assert best == pytest.approx(sum(outcomes) / len(outcomes), abs=1e-12)
    assert search_figures.expected_best([], []) == []


def test_what_a_trial_is_worth() -> None:
    def trial(status: str, score: float | None, source: str = "search") -> dict:
        return {"status": status, "score": score, "source": source}

    completed = [trial("completed", 0.4), trial("completed", 0.7)]
    assert search_figures.draws(
        [*completed, trial("completed", 0.9, "published"), trial("completed", 1.0, "confirmation")]
    ) == [
        0.4,
        0.7,
    ]
    others = [trial("stopped", 0.6), trial("stopped", 0.1), trial("diverged", 0.0), trial("error", None)]
    assert search_figures.draws(completed + others) == [0.4, 0.7, 0.4, 0.1, 0.0, 0.0]
    assert search_figures.draws([trial("stopped", 0.6)]) == [0.0]


def test_importance_finds_what_matters_and_is_repeatable() -> None:
    sweep = make_sweep("a", 0.9, trials=60)
    for row in sweep.rows:
        row["score"] = row["config"]["salient"] if row["status"] == "completed" else row["score"]
    sweep.rows[:] = [row for row in sweep.rows if row["status"] == "completed"]
    shares = search_figures.importance(sweep)
    assert shares["salient"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert search_figures.importance(sweep) == shares
    assert search_figures.importance(sweep._replace(rows=sweep.rows[:9])) == {}
    chosen = sweep._replace(identity=sweep.identity | {"chosen": "salient"})  # an outcome of each trial
    assert "salient" not in search_figures.importance(chosen)
    figure = search_figures.hyperparameters(chosen, None, None)
    bars = next(trace for trace in figure.data if trace.type == "bar")
    assert bars.text[list(sweep.identity["space"]).index("salient")] == "chosen"
    for row in sweep.rows:
        row["score"] = 0.5
    assert search_figures.importance(sweep) == {}


def test_fifteen_methods_differ_in_colour_and_shape_whatever_their_ranks() -> None:
    sweeps = [make_sweep(f"all/method-{index:02d}", 0.5, trials=1) for index in range(15)]
    drawn = style.styles(sweeps)
    assert len({its.colour for its in drawn.values()}) == len({its.symbol for its in drawn.values()}) == 15
    assert style.styles(sweeps[::-1]) == drawn
    assert drawn["all/method-03"].label == "method-03"


def test_two_names_of_the_same_label_stay_two_lines() -> None:
    sweeps = [make_sweep(f"{'a' * 20}{middle}{'b' * 20}", 0.5, originals=0) for middle in "xy"]
    axis = figures.comparison(sweeps, make_ranked(sweeps)).layout.yaxis
    assert axis.ticktext[0] == axis.ticktext[1]
    assert axis.tickvals == (0, 1)

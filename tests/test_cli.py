"""The command line, as a user meets it."""

import csv
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from conftest import REPOSITORY, asked
from test_ranking import confirmed, row, stored

from raymu import __version__, methods, scenarios
from raymu.cli import doctor, main, sweep_main
from raymu.cli.program import console
from raymu.errors import without_secrets
from raymu.evaluation import columns
from raymu.method import Range
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Protocol
from raymu.results import files, ranking, reader, tables, writer
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import Sweep


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("s3://K:SECRET@bucket/x?token=SECRET&region=here: no", "s3://***@bucket/x?token=***&region=here: no"),
        ("s3://K:SECRET/bucket", "s3://K:***/bucket"),
        ("s3://K:SECRET", "s3://K:***"),
        ("s3:/K:SECRET@bucket/x", "s3:/***@bucket/x"),
        ("K:SECRET@bucket/x", "***@bucket/x"),
        ("s3://bucket/x?token='SECRET", "s3://bucket/x?token=***"),
        ("s3://bucket/x#token=SECRET", "s3://bucket/x#token=***"),
        ("s3://bucket/x;SECRET", "s3://bucket/x;***"),
        ("postgresql+psycopg2://user:SEC/RET@host:5432/x", "postgresql+psycopg2://***@host:5432/x"),
        ("http://user:SECRET@host:1/x/api/2.0 failed", "http://***@host:1/x/api/2.0 failed"),
        ("no cluster answers at ray://host:10001: refused", "no cluster answers at ray://host:10001: refused"),
        ("sqlite:///study.db; --anyway goes on", "sqlite:///study.db; --anyway goes on"),
        ("own.py:12: lr is 3; is it? a#b", "own.py:12: lr is 3; is it? a#b"),
    ],
)
def test_what_is_said_has_no_secret(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["best", "s3://K:SECRET/bucket/x"],
        ["best", "s3:/K:SECRET@bucket/x"],
        ["best", "s3://bucket/x?token=a SECRET"],
        ["sweep", "finetune", "--optuna", "nosuch://user:SECRET@host/x"],
        ["sweep", "finetune", "--optuna", "sqlite://user:SECRET@host:notaport/x"],
        ["sweep", "finetune", "--mlflow", "//user:SECRET@host/x"],
        ["sweep", "finetune", "--data-dir", "s3://K:SECRET@bucket/x?token=SECRET"],
        ["references", "--scenario", "fashion-resnet", "--data-dir", "s3://K:SECRET@bucket/x?token=SECRET"],
        ["run", "finetune", "--out", "s3://K:SECRET@bucket/x"],
        ["run", "finetune", "--out", "out", "--config", "s3://K:SECRET@bucket/x"],
        ["evaluate", "s3://K:SECRET@bucket/x"],
        ["results", "~nobody-of-this-name/x"],
        ["run", "finetune", "--out", "~nobody-of-this-name/x"],
        ["sweep", "finetune", "--tensorboard", "~nobody-of-this-name/x"],
    ],
)
def test_a_refusal_is_a_line_without_secrets_and_leaves_nothing(refused, arguments: list[str]) -> None:
    assert "SECRET" not in refused(*arguments)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def __post_init__(self):\n        raise KeyError('mine')", "own.py, line 5: KeyError: 'mine'"),
        ("@classmethod\n    def name(cls):\n        raise ValueError('mine')", "own.py, line 6: ValueError: mine"),
        ("@classmethod\n    def name(cls):\n        return 7", "a method need names, not .*7"),
    ],
)
def test_what_a_users_file_raises_is_a_line(refused, tmp_path, body: str, said: str) -> None:
    own = tmp_path / "own.py"
    head = "import raymu\nclass Mine(raymu.Method):\n    paper = 'none'\n"
    own.write_text(f"{head}    {body}\n    def unlearn(self, run): yield\n")
    assert re.search(said, refused("run", str(own), "--out", str(tmp_path / "out")))


def test_help_is_quick_and_names_every_command(raymu) -> None:
    raymu("--help")  # fills the page cache
    started = time.monotonic()
    printed = raymu("--help")
    assert time.monotonic() - started < 5  # it imports neither torch nor Ray
    for command in ("sweep", "run", "methods", "scenarios", "results", "best", "doctor", "--install-completion"):
        assert command in printed.stdout


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["ray"] = None  # to import them raises ImportError
sys.argv = ["raymu", *sys.argv[1:]]
from raymu.cli import main
main()
"""


def without_torch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`raymu` where neither torch nor Ray can be imported."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        env={**os.environ, "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def light(*arguments: str, **environment: str) -> str:
    """Output of a command that needs neither torch nor Ray."""
    done = without_torch(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_says_something_before_it_imports_torch() -> None:
    done = without_torch("sweep", "salun", FORCE_COLOR="1")  # as on a terminal
    assert "loading" in done.stdout
    assert "import of torch halted" in done.stderr


def test_ctrl_c_while_the_command_line_is_loaded_ends_it_without_a_word(tmp_path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    done = subprocess.run(
        [sys.executable, "-m", "raymu", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_version_and_the_methods_are_said_at_once() -> None:
    assert light("--version") == f"raymu {__version__}\n"
    said = " ".join(light("sweep", "--help").split())
    for name in methods.names():
        first = (importlib.import_module(f"raymu.methods.{name}").__doc__ or "").splitlines()[0]
        assert f"{name} │ {first}" in said or f"{name} {first}" in said


def test_a_shell_completes_commands_methods_and_flags(raymu) -> None:
    def completed(words: str) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        return light(_RAYMU_COMPLETE="complete_bash", **asked).split()

    assert completed("raymu re") == ["references", "results", "report"]
    assert completed("raymu sweep s") == ["salun", "scrub", "ssd", "svd"]
    assert completed("raymu report --p") == ["--png"]
    assert completed("raymu sweep salum --t") == []
    assert "complete -o default -F _raymu_completion raymu" in light(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )


def test_doctor_lists_extras_trackers_and_the_browser(monkeypatch) -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(doctor.EXTRAS) == sorted(declared)
    required = [f'{one}; extra == "{extra}"' for extra, packages in declared.items() for one in packages]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy>=2", *required])
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("kaleido", "sqlalchemy", "wandb") else "9")
    found = {finding.what: finding for finding in doctor._extras()}
    assert [what.split()[1] for what in found] == sorted(declared)
    assert found["extra deepspeed (trials of several workers)"].detail == "deepspeed 9"
    png, trackers = found["extra png (raymu report --png)"], found["extra trackers (following a sweep)"]
    assert (png.state, png.detail) == ("optional", "without kaleido: pip install 'raymu[png]'")
    assert trackers.detail == "without sqlalchemy, wandb: pip install 'raymu[trackers]'"
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"mlflow": ["mlflow-skinny"]})
    listed = {finding.what: finding.detail for finding in doctor._trackers()}
    assert listed["--mlflow"] == "mlflow-skinny 9"
    assert listed["--wandb"] == "without wandb: pip install 'raymu[trackers]'"
    assert set(listed) == {"--tensorboard", "--mlflow", "--wandb", "--optuna"}
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    assert doctor._browser().state == "optional"
    monkeypatch.setenv("BROWSER_PATH", sys.executable)
    assert (doctor._browser().state, doctor._browser().detail) == ("ok", sys.executable)


@pytest.mark.long
def test_help_of_a_sweep_names_every_flag(raymu) -> None:
    printed = raymu("sweep", "salun", "--help", COLUMNS="140")
    for flag in ("--scenario", "--trials", "--storage", "--name", "--seed", "--resume", "--data-dir", "--address"):
        assert flag in printed.stdout
    assert "default: the method" in printed.stdout


def test_methods_and_scenarios(in_process, monkeypatch) -> None:
    def printed_by(*arguments: str, width: str = "80") -> str:
        monkeypatch.setattr(console, "width", int(width))
        return in_process(*arguments)

    described = {method["name"]: method for method in json.loads(printed_by("methods", "--json"))}
    assert described["salun"]["hyperparameters"]["lr"] == {
        "default": 1e-2,
        "low": 1e-5,
        "high": 1e-1,
        "scale": "log",
        "doc": "learning rate",
    }
    names = [scenario["name"] for scenario in json.loads(printed_by("scenarios", "--json"))]
    assert names[0] == "digits"
    assert {"cifar10-resnet18", "imagenet-vit_l"} < set(names)
    printed = {width: printed_by("methods", width=width) for width in ("40", "120")}
    for width, text in (*printed.items(), ("40", printed_by("scenarios", "--memory", width="40"))):
        assert max(map(len, text.splitlines())) <= int(width)
    assert "salun" in printed["40"]
    published = [
        (entry["name"], entry["config"])
        for entry in described["salun"]["published"]
        if (entry["dataset"], entry["head"]) == ("cifar100", "linear")
    ]
    assert published == [("code", {"lr": 3e-3}), ("table", {"lr": 1e-3})]
    assert {"code", "table"} <= set(printed["120"].split())
    assert described["unsir"]["forgets"] == ["classes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "salum"], "did you mean 'salun'"),
        (["run", "salum", "--out", "x"], "did you mean 'salun'"),
        (["sweep", "salun", "--scenario", "digitz"], "did you mean 'digits'"),
        (["sweep", "salun", "--forget", "10"], "forget class 10 is outside the data: digits has 0..9"),
        (["run", "salun", "--forget", "10", "--out", "x"], "forget class 10 is outside the data: digits has 0..9"),
        (["sweep", "salun", "--forget", "0,1,2,3,4,5,6,7,8,9"], "leave at least one"),
        (["sweep", "salun", "--forget", "three"], "unknown class of digits 'three'. Known: 0..9"),
        (["sweep", "salun", "--forget", "3", "--forget-share", "0.1"], "exclude each other"),
        (["sweep", "salun", "--forget-share", "1.5"], "share between 0 and 1"),
        (["sweep", "salun", "--forget-share", "0.1", "--objective", "hmean"], "use removal"),
        (["run", "salun", "--forget-share", "0.1", "--objective", "hmean", "--out", "x"], "use removal"),
        (
            ["sweep", "unsir", "--forget-share", "0.1"],
            "unsir forgets classes; it cannot forget single samples",
        ),
        (["sweep", "salun", "--head", "cmv"], "did you mean 'cmf'"),
        (["sweep", "salun", "--train", "clasifier"], "did you mean 'classifier'"),
        (["sweep", "ssd", "--train", "classifier"], "ssd trains nothing"),
        (["run", "ssd", "--train", "classifier", "--out", "x"], "ssd trains nothing"),
        (["sweep", "retrain", "--train", "classifier"], "starts from random weights"),
        (["sweep", "salun", "--head", "cmf", "--train", "classifier"], "nothing to train"),
        (["sweep", "salun", "--range", "temperature=1:2"], "unknown searched hyperparameter"),
        (["sweep", "neggrad_plus", "--range", "clip=1:2"], "unknown searched hyperparameter"),
        (["sweep", "salun", "--range", "lr=1e-2:1e-4"], "low end has to be below the high end"),
        (["sweep", "salun", "--range", "rl=1:2"], "did you mean 'lr'"),
        (["sweep", "salun", "--range", "lr=1"], "NAME=LOW:HIGH"),
        (["sweep", "salun", "--range", "salient=1.5:3"], "the range of salient has to be above 0 and at most 1"),
        (["sweep", "salun", "--range", "epochs=1.5:3"], "a whole number, not 1.5"),
        (["sweep", "salun", "--range", "epochs=0:3"], "the range of epochs has to be above 0"),
        (["sweep", "salun", "--range", "lr=nan:1"], "has to be above 0, a number, not nan"),
        (["sweep", "salun", "--range", "lr=1e-3:inf"], "has to be above 0, a number, not inf"),
        (["sweep", "salun", "--range", "lr=1e-3:1", "--range", "lr=1e-4:1"], "--range lr is given twice"),
        (["sweep", "salun", "--checkpoint-every", "nan"], "checkpoint_s has to be at least 0"),
        (["sweep", "salun", "--gpus-per-trial", "-1"], "gpus_per_worker has to be at least 0"),
        (["sweep", "salun", "--gpus-per-trial", "0.00001"], "has to be 0 or at least 0.0001, not 1e-05"),
        (["sweep", "salun", "--cpus-per-trial", "99999999999"], "threads has to be at least 1 and at most 4096"),
        (["sweep", "salun", "--max-epochs", str(2**63)], "max_epochs has to be below 2^63"),
        (["sweep", "salun", "--seed", str(2**64)], "--seed takes numbers such as 3 or 0,1,2"),
        (["sweep", "salun", "--range", "epochs=1:1e30"], "has to be below 2^63"),
        (["sweep", "salun", "--name", ".cache"], ".cache is where raymu-results keeps what is cached"),
        (["sweep", "salun", "--name", "a\nb"], "is no name of a directory within"),
        (["run", "salun", "--seed", "-1", "--out", "x"], "seed has to be at least 0"),
        (["sweep", "salun", "--trials", "0"], "trials has to be at least 1"),
        (["sweep", "salun", "--trials", "many"], "--trials takes a whole number or auto, not 'many'"),
        (["sweep", "salun", "--trials", "auto", "--searcher", "tpe"], "only gp has patience"),
        (["sweep", "salun", "--seed", "-1"], "seeds of at least 0"),
        (["sweep", "salun", "--objective", "mean"], "did you mean 'hmean'"),
        (["sweep", "salun", "--scheduler", "ashes"], "did you mean 'asha'"),
        (["sweep", "salun", "--concurrent", "0"], "concurrent has to be at least 1"),
        (["sweep", "salun", "--storage", "/proc/no"], "cannot write to /proc/no/salun"),
        (["results", "nowhere"], "no sweep in nowhere"),
        (["best", "nowhere"], "no sweep in nowhere"),
        (["report", "nowhere"], "no sweep in nowhere"),
        (["report", "here", "nowhere/../here/"], "here and nowhere/../here/ are the same storage"),
        (["report", "here", "there", "here"], "here and here are the same storage"),
        (["results", "here", "--at-equal", "images"], "give --ranking or --latex as well"),
        (["run", "salun", "--config", "nowhere.yaml", "--out", "x"], "cannot read nowhere.yaml"),
        (["run", "salun", "--out", "/proc/no"], "cannot write to /proc/no"),
        (["sweep", "salun", "--weights", "x"], "--weights x: digits starts from random weights"),
        (["run", "salun", "--weights", "x", "--out", "x"], "--weights x: digits starts from random weights"),
        (["references", "--originals", "0"], "--originals has to be at least 1"),
        (["swep"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line_before_anything_starts(monkeypatch, capsys, tmp_path, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["raymu", *arguments])
    monkeypatch.setattr("ray.init", None)  # nothing may get that far
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in " ".join(printed.err.split())
    if printed.err.startswith("error: "):
        assert len(printed.err.splitlines()) == 1
    assert not list(tmp_path.rglob(files.ROWS))


def test_a_list_of_sweeps_keeps_what_each_one_says(monkeypatch, capsys, tmp_path) -> None:
    begun: list[Sweep] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raymu.cli.sweep.sweep_and_rank", lambda sweeps, *given, **more: begun.extend(sweeps))
    digits = SCENARIOS["digits"]

    def main(*arguments: str, sweeps: list[Sweep]) -> str:
        monkeypatch.setattr(sys, "argv", ["mine.py", *arguments])
        begun.clear()
        with pytest.raises(SystemExit):
            sweep_main(lambda: sweeps)
        return capsys.readouterr().err

    few = Protocol(trials=2, objective="weighted")
    both = [
        Sweep(RandomLabel, digits, few, head=head, space={"lr": Range(1e-3, 1e-2, "log")}) for head in ("linear", "cmf")
    ]
    assert main(sweeps=both) == ""
    assert begun == both
    main("--trials", "3", sweeps=both)
    assert [(sweep.name, sweep.protocol.trials) for sweep in begun] == [("random_label", 3), ("random_label-cmf", 3)]
    assert "error: two of the sweeps are random_label-cmf" in main("--head", "cmf", sweeps=both)
    others = {
        "scenario": Sweep(RandomLabel, dataclasses.replace(digits, forget=(3,)), few, head="cmf"),
        "protocol": Sweep(RandomLabel, digits, Protocol(trials=2), head="cmf"),
    }
    for what, other in others.items():
        assert f"error: sweeps that are ranked share one {what}" in main(sweeps=[both[0], other])
        assert begun == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("config: {}\nforget: '12'", "forget has to be a tuple, not '12'"),
        ("config: {}\nforget: {3: 1}", "forget has to be a tuple"),
        ("config: {}\nscenario: [a]", "unknown scenario ['a']"),
        ("config: {epochs: 1:30}", "a whole number, not '1:30'"),
        ("config: {epochs: '1_0'}", "a whole number, not '1_0'"),
        ("config: {lr: .inf}", "a number, not '.inf'"),
        ("method: finetune\nconfig: {lr: 0.1}", "a setting of finetune, not of salun"),
        ("config: {salint: 0.1}", "did you mean 'salient'"),
        ("lr: 0.1", "needs a `config`"),
        ("{", "is no YAML"),
        ("config: {lr: !!float x}", "is no YAML"),
        ("config: {lr: !!bool x}", "is no YAML"),
        ("config: {lr: !!timestamp x}", "is no YAML"),
        (f"config: {{lr: {6000 * '9'}}}", "is no YAML"),
        ("\xff", "is no text"),
        ("config: {epochs: 2.9}", "salun: epochs has to be above 0, a whole number, not 2.9"),
        ("config: {epochs: true}", "a whole number, not True"),
        ("config: {salient: 2}", "salient has to be above 0 and at most 1, a number, not 2"),
        ("config: {saliency: fan}", "unknown salun: saliency 'fan'"),
        ("seed: 1.5\nconfig: {lr: 0.1}", "seed has to be at least 0, a whole number, not 1.5"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(monkeypatch, capsys, tmp_path, content, message) -> None:
    (tmp_path / "config.yaml").write_bytes(content.encode("latin-1"))
    arguments = ["run", "salun", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "x")]
    test_bad_input_is_one_clear_line_before_anything_starts(monkeypatch, capsys, tmp_path, arguments, message)


@pytest.fixture
def storage(tmp_path):
    """Two hand-made rows, one of a trial that failed."""
    metrics = dict.fromkeys(columns(), 0.5)
    common = {
        "method": "salun",
        "scenario_hash": "abc",
        "objective": "hmean",
        "config": {"lr": 0.1},
        "source": "search",
        "confirms": None,
        "fallback": False,
        **{"model_seed": 0, "seed": 0, "forget": [8], "forget_share": 0.0},
    }
    with writer.Store(tmp_path / "s" / "salun", asked(), resume=False) as rows:
        rows.append({**common, "trial_id": "a-0", "trial": 0, "status": "completed", "score": 0.5, **metrics})
        none = dict.fromkeys(metrics)
        rows.append({**common, "trial_id": "a-1", "trial": 1, "status": "error", "score": None, **none})
    return "s"


OWN_FILE = """
import dataclasses
import raymu

class Mine(raymu.methods.get("finetune")):
    pass

DIGITS = raymu.SCENARIOS["digits"]
SCENARIO = dataclasses.replace(DIGITS, name="mine", forget=(8,), recipe=dataclasses.replace(DIGITS.recipe, epochs=1))
"""


def test_what_a_row_names_is_found_in_the_file_of_the_method(in_process, tmp_path) -> None:
    (tmp_path / "own.py").write_text(OWN_FILE)
    (tmp_path / "best.yaml").write_text("scenario: mine\nconfig: {lr: 0.01, epochs: 1}\n")
    assert "mine on mine" in in_process("run", "own.py", "--config", "best.yaml", "--out", "out")


def test_a_thing_of_the_users_with_a_name_of_raymus_is_told(tmp_path, caplog) -> None:
    (tmp_path / "own.py").write_text(OWN_FILE.replace('"mine"', '"digits"'))
    scenarios.load(tmp_path / "own.py")
    assert scenarios.get("digits").forget == (8,)
    assert f"digits is the scenario of {tmp_path / 'own.py'} now, and not raymu's" in caplog.text


def test_names_that_look_like_markup_are_shown_as_they_are(raymu, tmp_path) -> None:
    for name in ("[y]", "[red]x", "[/]", ":smile:"):
        with writer.Store(tmp_path / "s" / name, asked(), resume=False) as rows:
            rows.append(row(0, 0.9, 0.1) | {"trial_id": f"{name}-0000", "status": "error", "config": {name: 1}})
        for command in ("results", "status"):
            printed = raymu(command, "s", COLUMNS="200")
            assert printed.returncode == 0, printed.stderr
            assert name in printed.stdout


def test_results_in_every_form(raymu, storage) -> None:
    assert [row["trial_id"] for row in json.loads(raymu("results", storage, "--json").stdout)] == ["a-0", "a-1"]
    table = list(csv.DictReader(io.StringIO(raymu("results", storage, "--csv").stdout)))
    found = [(row["trial_id"], row["score"], row["config.lr"]) for row in table]
    assert found == [("a-0", "0.5", "0.1"), ("a-1", "", "0.1")]
    plain = raymu("results", storage, COLUMNS="80").stdout
    assert "a-0" in plain
    assert "50.0" in plain


def test_best_of_a_method(raymu, storage) -> None:
    assert json.loads(raymu("best", storage, "--json").stdout)["trial_id"] == "a-0"
    assert json.loads(raymu("best", storage, "--method", "salun", "--json").stdout)["trial_id"] == "a-0"
    refused = raymu("best", storage, "--method", "scrub")
    assert refused.returncode == 2
    assert "Known: salun" in refused.stderr


def test_best_shows_the_confirmation_where_there_is_one(in_process, tmp_path) -> None:
    stored(tmp_path / "s", one := confirmed("a", 0.5))
    said = in_process("best", "s")
    (entry,) = ranking.rank([one])
    assert tables.fixed(entry.score.mean) in said
    assert "confirmed: 15 runs on 5 originals" in said


def test_best_goes_on_where_a_group_has_nothing(in_process, storage, tmp_path) -> None:
    one = reader.read_all(tmp_path / storage)[0]
    failed = one | {"trial_id": "b-0", "status": "error", "score": None, "error": "out of memory"}
    with writer.Store(tmp_path / storage / "before", asked(3), resume=False) as rows:
        rows.append(failed)
    said = in_process("best", storage)
    assert "no completed trial to choose from" in said
    assert "a-0: salun" in said


def test_a_command_says_what_is_missing(raymu, tmp_path) -> None:
    """As a process, where pytest does not listen to the warnings."""
    stored(tmp_path / "s", confirmed("a", 0.5))
    rows = tmp_path / "s" / "a" / files.ROWS
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    for arguments in (["results", "s"], ["report", "s"]):
        assert "rows are there" in raymu(*arguments).stderr


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(in_process, tmp_path, caplog) -> None:
    for name, probe in (("a", 0.5), ("b", 0.4), ("c", 0.3)):
        stored(tmp_path / "s", confirmed(name, probe))
    rows = tmp_path / "s" / "b" / files.ROWS
    rows.write_bytes(rows.read_bytes().replace(b"0.9", b"0.8"))
    for arguments in (["results", "s"], ["results", "s", "--ranking"], ["best", "s"], ["report", "s"]):
        caplog.clear()
        printed = in_process(*arguments)
        (said,) = [line for line in caplog.messages if line.startswith("left out")]
        assert "s/b: line 1 of rows.jsonl is damaged" in said
        assert "b-0" not in printed
    assert json.loads(in_process("best", "s", "--json"))["method"] == "c"
    page = (tmp_path / "report.html").read_text()
    assert ">c</th>" in page
    assert ">b</th>" not in page


def test_a_ranking_at_equal_compute(in_process, tmp_path) -> None:
    for name, images in (("a", 10), ("b", 15)):
        one = confirmed(name, 0.5, seed=images)
        stored(tmp_path / "s", one._replace(rows=[of | {"images": images} for of in one.rows]))
    printed = " ".join(in_process("results", "s", "--ranking", "--at-equal", "images").split())
    assert "Searches up to 20 images each, which is all that a spent. Not confirmed at that point, so single" in printed
    latex = in_process("results", "s", "--latex", "--at-equal", "images")
    assert "which is all that a spent." in next(line for line in latex.splitlines() if "caption" in line)


def test_storages_side_by_side(in_process, tmp_path, monkeypatch, capsys) -> None:
    for place, probe in (("old", 0.5), ("new", 0.3)):
        stored(tmp_path / place, confirmed("a", probe, seed=int(10 * probe)))
    stored(tmp_path / "new", confirmed("b", 0.3))
    in_process("report", "old", "new", "-o", "both.html")
    page = (tmp_path / "both.html").read_text()
    assert "<title>raymu: old and new</title>" in page
    assert '<h2 id="changed-1">Higher: a.</h2>' in page
    assert "<dt>Only here</dt><dd>b</dd>" in page
    assert page.count("<article") == 2
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    stored(tmp_path / "other", confirmed("b", 0.4))
    for place, message in (("copy", "hold the same trials"), ("other", "have no method in common")):
        monkeypatch.setattr(sys, "argv", ["raymu", "report", "old", place])
        with pytest.raises(SystemExit, match="2"):
            main()
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.long
def test_doctor_finds_that_this_machine_works(raymu) -> None:
    printed = raymu("doctor", COLUMNS="200")
    assert printed.returncode == 0, printed.stdout
    for finding in ("torch", "Ray runs", "cache", "storage", "GPU"):
        assert finding in printed.stdout


@pytest.mark.long
def test_run_shows_what_the_probe_reads_from_every_block(raymu, tmp_path) -> None:
    done = raymu("run", "random_label", "--layers", "--out", "unlearned")
    assert done.returncode == 0, done.stderr
    profiles = json.loads((tmp_path / "unlearned" / "layers.json").read_text())
    assert list(profiles) == ["original", "retrained", "random_label"]
    for rows in profiles.values():
        assert [row["layer"] for row in rows] == ["act1", "layer1", "layer2", "layer3", "layer4", "penultimate"]
        assert all(row["layer"] in done.stdout for row in rows)
    row = json.loads((tmp_path / "unlearned" / "row.json").read_text())
    last = profiles["random_label"][-1]
    assert last["test_probe_forget_acc"] == pytest.approx(row["test_probe_forget_acc"], abs=0.05)

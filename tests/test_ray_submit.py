"""`ray up`, `ray submit` and `ray down` with `cluster/local.yaml`, over ssh, on machines that are made for it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY
from ray.autoscaler._private import readonly
from ray.autoscaler._private.fake_multi_node import node_provider

from raymu import reference_models
from raymu.results import reader
from raymu.scenario import SCENARIOS

HEAD, WORKER = "10.77.0.2", "10.77.0.3"  # of tests/machines.sh
FILLED_IN = {
    "head_ip: HEAD": f"head_ip: {HEAD}",
    "worker_ips: []": f"worker_ips: [{WORKER}]",
    "ssh_user: USER": "ssh_user: root",
}
USER = """
set -e
cd ~/checkout
echo 0123456789abcdef0123456789abcdef > ~/.ray/auth_token
ray up --yes cluster.yaml
ray exec cluster.yaml 'until ray status | grep -q "/$(($(nproc) * 2)).0 CPU"; do sleep 0.5; done'
ray submit cluster.yaml sweeps/salun.py --trials 2 --storage {shared}/results
ray down --yes cluster.yaml
"""


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="machines are made of namespaces, which only root can make"),
]


@pytest.fixture
def server(tmp_path: Path, cache: Path) -> Path:
    """The home directory on machines that one can log in to. What raymu needs is installed there, raymu is not, and
    nothing can be downloaded. The references are there, since other tests train them as well.
    """
    home = tmp_path / "server"
    reference_models.load(SCENARIOS["digits"], torch.device("cpu"))
    shutil.copytree(cache, home / ".cache" / "raymu")
    (home / ".ssh").mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh" / "host_key"], check=True)
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\nno-index = true\nno-build-isolation = 0\n")
    environment = home / "raymu-venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site_packages = next(environment.glob("lib/python*/site-packages"))
    (site_packages / "installed.pth").write_text(sysconfig.get_path("purelib"))
    ray = environment / "bin" / "ray"
    ray.write_text("#!/home/root/raymu-venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    return home


@pytest.fixture
def user(tmp_path: Path, cache: Path, server: Path) -> Path:
    """The home directory of the user, who has a checkout with an edit in it, and may log in on the machines."""
    home = tmp_path / "user"
    shutil.copytree(cache, home / ".cache" / "raymu")
    checkout = home / "checkout"
    shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__"))
    config = (checkout / "cluster" / "local.yaml").read_text()
    for line, filled_in in FILLED_IN.items():
        assert config.count(line) == 1
        config = config.replace(line, filled_in)
    (checkout / "cluster.yaml").write_text(config)
    for command in ("init --quiet", "add .", "-c user.name=a -c user.email=b commit --quiet --message all"):
        subprocess.run(["git", "-C", checkout, *command.split()], check=True)
    with (checkout / "sweeps" / "salun.py").open("a") as script:
        script.write("# edited\n")
    (home / ".ray").mkdir()
    (home / ".ssh").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh" / "id_ed25519"], check=True)
    shutil.copy(home / ".ssh" / "id_ed25519.pub", server / ".ssh" / "authorized_keys")
    return home


def sweep_on_machines(server: Path, user: Path, shared: Path, commands: str) -> tuple[reader.SweepResults, str]:
    """Let the user give commands that sweep with two trials; return what is stored then, and what they print."""
    shared.mkdir()
    environment = {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "TERM": "dumb", "LANG": "C.UTF-8"}
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    machines = [REPOSITORY / "tests" / "machines.sh", server, user, shared]
    command = ["bash", "-c", commands.format(shared=shared)]
    with (shared / "printed").open("w+") as printed:
        ended = subprocess.run(
            [*namespaces, *machines, *command], stdout=printed, stderr=subprocess.STDOUT, timeout=240, env=environment
        )
        printed.seek(0)
        output = printed.read()
    assert ended.returncode == 0, output
    assert "tuned setting" in output
    (result,) = reader.load(shared / "results")
    assert sorted(row["trial"] for row in result.rows) == [0, 1]
    assert all(row["status"] in ("completed", "stopped") for row in result.rows)
    return result, output


def test_the_three_commands_on_two_machines(server, user, tmp_path) -> None:
    result, _ = sweep_on_machines(server, user, tmp_path / "shared", USER)
    git = ["git", "-C", str(user / "checkout"), "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    assert result.environment["git"] == {"commit": commit, "dirty": True}


LEFT_ALONE = """
set -e
cd ~/checkout
echo 0123456789abcdef0123456789abcdef > ~/.ray/auth_token
ray up --yes cluster.yaml
ray submit --tmux cluster.yaml sweeps/salun.py --trials 2 --storage {shared}/results
! pgrep ssh # no session is left
until PYTHONPATH=$PWD python -m raymu status {shared}/results --json | grep '"ended"'; do sleep 2; done
ray exec cluster.yaml 'tmux capture-pane -p -S - | grep -A2 "tuned setting"'
ray down --yes cluster.yaml
for host in {head} {worker}; do
    ssh -o StrictHostKeyChecking=no $host 'for wait in $(seq 90); do pgrep raylet || exit 0; sleep 1; done; exit 1'
done
"""


@pytest.mark.long
def test_a_sweep_outlives_the_session_that_submits_it(server, user, tmp_path) -> None:
    """Afterwards no Ray is left on either machine."""
    commands = LEFT_ALONE.replace("{head}", HEAD).replace("{worker}", WORKER)
    sweep_on_machines(server, user, tmp_path / "shared", commands)


AUTOSCALING = """
set -e
cd ~/checkout
export PYTHONPATH=$PWD RAY_AUTH_MODE=token RAY_FAKE_CLUSTER=1 RAY_enable_autoscaler_v2=1
export RAY_CLOUD_INSTANCE_ID={head} RAY_OVERRIDE_NODE_ID_FOR_TESTING={head} AUTOSCALER_UPDATE_INTERVAL_S=1
export RAY_NODE_TYPE_NAME=ray.head.default
cp autoscaling.yaml {defaults} # which Ray reads and does not ship; on this machine alone
ray get-auth-token --generate > /dev/null
ray start --head --num-cpus=0 --include-dashboard=false --autoscaling-config=autoscaling.yaml
unset RAY_OVERRIDE_NODE_ID_FOR_TESTING
! python sweeps/salun.py --trials 2 --storage {{shared}}/results
python sweeps/salun.py --trials 2 --storage {{shared}}/results --concurrent 2
"""


@pytest.mark.long
def test_a_sweep_begins_where_the_autoscaler_has_no_worker_yet(server, user, tmp_path) -> None:
    """As in the cloud, with Ray's provider of pretended machines. The head's own CPUs are not for trials."""
    config = yaml.safe_load((Path(readonly.__file__).parent / "defaults.yaml").read_text())
    config["provider"] |= {
        "type": "fake_multinode",
        "head_node_id": node_provider.FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
    }
    config["available_node_types"]["worker"] = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2}
    config["max_workers"] = 2
    (user / "checkout" / "autoscaling.yaml").write_text(yaml.safe_dump(config))
    defaults = Path(node_provider.__file__).with_name("example.yaml")
    commands = AUTOSCALING.format(head=node_provider.FAKE_HEAD_NODE_ID, defaults=defaults)
    _, output = sweep_on_machines(server, user, tmp_path / "shared", commands)
    assert "the Ray cluster has 0 and 0; --concurrent says how far it shall grow" in output


SLURM = """
set -e
cd ~/checkout
ln -s {prefix} .venv
mkdir ~/bin
echo 'echo "$3"' > ~/bin/scontrol
echo 'while [[ $1 = --* ]]; do shift; done; exec "$@"' > ~/bin/srun
chmod +x ~/bin/*
export PATH=~/bin:$PATH SLURM_SUBMIT_DIR=$PWD SLURM_JOB_NODELIST=10.77.0.1 SLURM_JOB_NUM_NODES=2 SLURM_CPUS_PER_TASK=1
for SLURM_JOB_ID in 7 8; do
    export SLURM_JOB_ID
    PYTHONPATH=$PWD bash cluster/slurm.sh sweeps/salun.py --trials 2 --storage {{shared}}/results
    ! pgrep raylet
done
"""


@pytest.mark.long
def test_slurms_script_starts_a_head_and_a_worker_and_ends_them(server, user, tmp_path) -> None:
    """Twice, as when the job is requeued; without Slurm, whose commands run here what they would run on a node."""
    sweep_on_machines(server, user, tmp_path / "shared", SLURM.format(prefix=sys.prefix))

"""The files in `cluster/`: by Ray's own checks, by KubeRay's schema, and by what they may cost and whom they let in."""

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY
from moto import mock_aws
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = REPOSITORY / "cluster"
CLOUDS = ["aws", "gcp", "azure"]
RAY_UP = [*CLOUDS, "local"]
REQUIRED = SpecifierSet(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"])
EXCLUDED = {".venv", "raymu-results", "__pycache__"}


def read(kind: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{kind}.yaml").read_text())


def prepared(kind: str) -> dict[str, Any]:
    """As `ray up` prepares it, with Ray's defaults for what the file leaves out."""
    return prepare_config(read(kind))


@pytest.mark.parametrize("kind", RAY_UP)
def test_ray_accepts_it(kind) -> None:
    config = prepared(kind)
    validate_config(config)
    misspelt = read(kind) | {"idle_timeout_minuets": 5}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(misspelt))


@pytest.mark.parametrize("kind", RAY_UP)
def test_every_node_gets_the_checkout_the_token_and_the_same_versions(kind) -> None:
    config = prepared(kind)
    assert config["file_mounts"] == {"~/raymu-checkout": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    assert set(config["rsync_exclude"]) >= EXCLUDED
    for node in ("head", "worker"):
        commands = "\n".join(config[f"{node}_setup_commands"])
        assert "pip install -e ~/raymu-checkout'[deepspeed]'" in commands
        assert "export RAY_AUTH_MODE=token PATH=$HOME/raymu-venv/bin:$PATH" in commands
    assert config["cluster_synced_files"] == ["~/raymu-versions.txt"]
    assert "> ~/raymu-versions.txt" in config["head_setup_commands"][-1]
    assert "-c ~/raymu-versions.txt" in config["worker_setup_commands"][-1]


CURL = """#!/bin/sh
echo 'mkdir "$UV_UNMANAGED_INSTALL" && cp ~/uv "$UV_UNMANAGED_INSTALL/uv"'
"""
UV = """#!/bin/sh
echo "$@" >> ~/asked
mkdir -p ~/raymu-venv/bin
printf '#!/bin/sh\n' > ~/raymu-venv/bin/python
chmod +x ~/raymu-venv/bin/python
"""


@pytest.mark.parametrize("kind", RAY_UP)
def test_setup_makes_an_environment_once_with_a_python_that_raymu_takes(kind, tmp_path) -> None:
    """The command as Ray runs it, with a pretended download. Ray wants the same Python down to the patch on all nodes,
    so the file has to name one.
    """
    for name, script in (("curl", CURL), ("uv", UV)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    make = prepared(kind)["head_setup_commands"][0]
    assert make == prepared(kind)["worker_setup_commands"][0]
    for _ in range(2):
        subprocess.run(["bash", "-c", make], check=True, env=environment)
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith("venv ")
    assert asked.endswith(f" {tmp_path}/raymu-venv")
    (version,) = re.findall(r"--managed-python --python (\d+\.\d+\.\d+) ", asked)
    assert version in REQUIRED


def test_images_and_documentation_name_a_python_that_raymu_takes() -> None:
    images = re.findall(r"image: rayproject/ray:\S+-py(\d)(\d+)", (CLUSTER / "kuberay.yaml").read_text())
    assert len(images) == 2
    assert all(".".join(image) in REQUIRED for image in images)
    for text in (REPOSITORY / "README.md", CLUSTER / "README.md"):
        named = re.findall(r"Python (\S+) or newer", text.read_text())
        assert named
        assert all(SpecifierSet(f">={version}") == REQUIRED for version in named)


@pytest.mark.parametrize("kind", RAY_UP)
def test_there_is_no_dashboard(kind) -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = " ".join(prepared(kind)[commands])
        assert "dashboard-host" not in started
        assert ("--include-dashboard=false" in started) == ("--head" in started)


@pytest.mark.parametrize("kind", CLOUDS)
def test_an_idle_cluster_costs_its_head(kind) -> None:
    config = prepared(kind)
    head, worker = (config["available_node_types"][name] for name in ("head", "worker"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert (worker["min_workers"], worker["max_workers"]) == (0, config["max_workers"])
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False
    spot = {"aws": "MarketType: spot", "gcp": "provisioningModel: SPOT", "azure": "priority: Spot"}[kind]
    assert spot in yaml.safe_dump(worker["node_config"])
    assert "spot" not in yaml.safe_dump(head["node_config"]).lower()
    assert worker["resources"]["GPU"] == 1


@pytest.mark.parametrize("kind", CLOUDS)
def test_what_a_user_fills_in_stands_first(kind) -> None:
    above, below = (CLUSTER / f"{kind}.yaml").read_text().split("# Nothing has to be changed from here on.\n")
    capitals = r"\b(PROJECT|REGION|ZONE|LOCATION|SUBSCRIPTION|SECURITY_GROUP)\b"
    assert re.search(capitals, above)
    assert not re.search(capitals, below)


@pytest.fixture
def account(tmp_path, monkeypatch) -> Iterator[Any]:
    """An AWS account that was prepared as cluster/README.md says, with a security group for ssh from one address."""
    import boto3

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    with mock_aws():
        for name in ("raymu-head", "raymu-worker"):
            boto3.client("iam", region_name="eu-central-1").create_instance_profile(InstanceProfileName=name)
        ec2 = boto3.resource("ec2", region_name="eu-central-1")
        group = ec2.create_security_group(GroupName="raymu", Description="raymu", VpcId=next(iter(ec2.vpcs.all())).id)
        group.authorize_ingress(IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="192.0.2.1/32")
        yield ec2, group


def test_ray_opens_nothing_on_aws(account, tmp_path) -> None:
    """Ray's own start of a cluster, up to the machines, on a simulated account. Without a group given it makes one that
    lets all of the world try to log in.
    """
    ec2, group = account
    bootstrap_aws = importlib.import_module("ray.autoscaler._private.aws.config").bootstrap_aws
    groups = {other.id for other in ec2.security_groups.all()}
    config = prepared("aws")
    config["provider"]["region"] = "eu-central-1"
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["SecurityGroupIds"] = [group.id]
    started = bootstrap_aws(config)
    assert {other.id for other in ec2.security_groups.all()} == groups
    for name, node_type in started["available_node_types"].items():
        assert node_type["node_config"]["SecurityGroupIds"] == [group.id]
        assert node_type["node_config"]["IamInstanceProfile"] == {"Name": f"raymu-{name}"}
        assert node_type["node_config"]["SubnetIds"]
    assert Path(started["auth"]["ssh_private_key"]).is_relative_to(tmp_path)


def test_a_worker_on_aws_may_do_nothing_but_use_the_bucket() -> None:
    """No action is a pattern but those that look, and one role alone is passed on."""
    of_both, of_head = (
        json.loads((CLUSTER / f"aws-{name}.json").read_text())["Statement"] for name in ("bucket", "workers")
    )
    given = re.findall(
        r"put-role-policy --role-name (\S+) .* file://cluster/(\S+)", (CLUSTER / "README.md").read_text()
    )
    assert given == [
        ("raymu-head", "aws-bucket.json"),
        ("raymu-worker", "aws-bucket.json"),
        ("raymu-head", "aws-workers.json"),
    ]

    def actions(statements: list[dict[str, Any]]) -> list[str]:
        named = [one["Action"] for one in statements]
        return [action for some in named for action in ([some] if isinstance(some, str) else some)]

    assert {action.split(":")[0] for action in actions(of_both)} == {"s3"}
    assert [action for action in actions(of_both + of_head) if "*" in action] == ["ec2:Describe*"]
    (passed,) = [one["Resource"] for one in of_head if one["Action"] == "iam:PassRole"]
    assert passed.endswith(":role/raymu-worker")


def test_torch_on_google_cloud_is_built_for_the_driver_of_its_image() -> None:
    config = prepared("gcp")
    image = config["available_node_types"]["worker"]["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
    (cuda,) = re.findall(r"-cu(\d+)-", image)
    for node in ("head", "worker"):
        assert f"https://download.pytorch.org/whl/cu{cuda}" in "\n".join(config[f"{node}_setup_commands"])


def test_machines_on_google_cloud_are_in_a_network_of_their_own() -> None:
    """In that which Ray would take there is a rule that lets all of the world try to log in."""
    for node_type in prepared("gcp")["available_node_types"].values():
        (interface,) = node_type["node_config"]["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/raymu")


METADATA = """
import http.server, sys

calls = 0

class Metadata(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        assert self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200, "secret")

    def do_GET(self):
        global calls
        cloud = sys.argv[1]
        if cloud == "aws":
            good = self.path == "/latest/meta-data/spot/instance-action"
            good = good and self.headers["X-aws-ec2-metadata-token"] == "secret"
            before, after = (404, ""), (200, '{"action": "terminate", "time": "2026-11-24T18:00:00Z"}')
        elif cloud == "gcp":
            good = self.path == "/computeMetadata/v1/instance/preempted"
            good = good and self.headers["Metadata-Flavor"] == "Google"
            before, after = (200, "FALSE"), (200, "TRUE")
        else:
            good = self.path == "/metadata/scheduledevents?api-version=2020-07-01"
            good = good and self.headers["Metadata"] == "true"
            event = '{"DocumentIncarnation": 1, "Events": [{"EventType": "%s", "Resources": ["worker"]}]}'
            before, after = (200, event % "Freeze"), (200, event % "Preempt")
        calls += good
        self.answer(*((403, "") if not good else before if calls < 2 else after))

    def answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

http.server.HTTPServer(("169.254.169.254", 80), Metadata).serve_forever()
"""
RAY = """#!/bin/sh
echo "$@"
"""
DRAINING = """
ip link set lo up
ip address add 169.254.169.254 dev lo
"$1" "$2/metadata.py" "$3" 2> /dev/null &
until curl --silent --output /dev/null 169.254.169.254; do sleep 0.1; done
PATH="$2:$PATH" exec "$4" "$3"
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a network of its own")


@needs_root
@pytest.mark.parametrize(("cloud", "seconds"), [("aws", 120), ("gcp", 30), ("azure", 30)])
def test_ray_is_told_that_a_spot_machine_is_taken_back(cloud, seconds, tmp_path) -> None:
    """Where the metadata server is, there is one that says so at the second request."""
    (tmp_path / "metadata.py").write_text(METADATA)
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "ray").chmod(0o755)
    command = ["bash", "-c", DRAINING, "-", sys.executable, tmp_path, cloud, CLUSTER / "drain.sh"]
    namespaces = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
    printed = subprocess.run([*namespaces, *command], capture_output=True, text=True, timeout=60)
    assert printed.returncode == 0, printed.stderr
    (drained,) = printed.stdout.splitlines()
    assert drained.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message ")
    assert drained.endswith(f" --deadline-remaining-seconds {seconds}")
    assert f"drain.sh {cloud} " in prepared(cloud)["worker_start_ray_commands"][-1]
    options = subprocess.run(["ray", "drain-node", "--help"], capture_output=True, text=True, env=_environment()).stdout
    assert set(re.findall(r"--[a-z-]+", drained)) <= set(re.findall(r"--[a-z-]+", options))
    assert "DRAIN_NODE_REASON_PREEMPTION" in options


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}


def test_kuberay_accepts_its_job() -> None:
    schema = json.loads((REPOSITORY / "tests" / "rayjob-schema.json").read_text())
    job = read("kuberay")
    jsonschema.validate(job, schema)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envForm"] = []
    with pytest.raises(jsonschema.ValidationError, match="envForm"):
        jsonschema.validate(job, schema)


def test_kuberays_job_keeps_the_token_secret_ends_and_has_its_gpus_for_trials() -> None:
    job = read("kuberay")["spec"]
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raymu"}
    assert job["shutdownAfterJobFinishes"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    containers = [
        container
        for group in (cluster["headGroupSpec"], workers)
        for container in group["template"]["spec"]["containers"]
    ]
    assert all(f"rayproject/ray:{cluster['rayVersion']}-py311" in container["image"] for container in containers)
    assert ["nvidia.com/gpu" in container["resources"]["limits"] for container in containers] == [False, True]
    runtime = yaml.safe_load(job["runtimeEnvYAML"])
    assert runtime["pip"] == [f"raymu[deepspeed] @ {runtime['working_dir']}"]
    assert (REPOSITORY / job["entrypoint"].split()[1]).is_file()


@pytest.mark.parametrize("script", ["cluster/slurm.sh", "cluster/drain.sh", "tests/machines.sh"])
def test_shellcheck_finds_nothing(script) -> None:
    printed = subprocess.run(["shellcheck", REPOSITORY / script], capture_output=True, text=True, env=_environment())
    assert printed.returncode == 0, printed.stdout


NODES = """
echo 'echo "$3"' > scontrol
echo 'while [[ $1 = --* ]]; do shift; done; exec "$@"' > srun
# Only `ray start` of a head names a port. `python` is first what waits for all nodes, and then the sweep.
echo 'case "$*" in *--port=*) {head} ;; *--address=*) {worker} ;; health-check) {health} ;; esac' > .venv/bin/ray
echo '[[ $1 = -c ]] && {joined} || echo swept' > .venv/bin/python
chmod +x scontrol srun .venv/bin/*
"""
UP, FAILS = "exec sleep 20", "exit 1"
ENDED, LATE = "Ray has ended on a node", "Ray has not started on all nodes within five minutes"


@pytest.mark.parametrize(
    ("head", "health", "worker", "joined", "said"),
    [
        (FAILS, UP, UP, "true", ENDED),
        (UP, "true", FAILS, UP, ENDED),
        (UP, UP, UP, "true", LATE),
        (UP, "true", UP, UP, LATE),
        (UP, "true", UP, FAILS, ""),
        (UP, "true", UP, "true", None),
    ],
)
def test_slurms_script_does_not_wait_for_what_cannot_start(head, health, worker, joined, said, tmp_path) -> None:
    """With pretended commands of Slurm and Ray; `ray health-check` takes its time where no head answers."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    nodes = NODES.format(head=head, health=health, worker=worker, joined=joined)
    subprocess.run(["bash", "-c", nodes], check=True, cwd=tmp_path)
    text = (CLUSTER / "slurm.sh").read_text()
    assert text.count("SECONDS + 300") == 1
    (tmp_path / "slurm.sh").write_text(text.replace("SECONDS + 300", "SECONDS + 2"))
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    command = ["bash", tmp_path / "slurm.sh", "sweeps/salun.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    swept = said is None
    assert ended.returncode == (0 if swept else 1)
    assert ended.stdout == ("swept\n" if swept else "")
    assert ended.stderr == (f"slurm.sh: {said}, so there is no sweep\n" if said else "")

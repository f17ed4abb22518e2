"""The cluster files, as far as they can be checked without a cloud: against Ray's own schema, the
pinned versions, our command line and one another."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.executors.environment import prepare
from pipeline.recipe import override, parse
from schemas.config import RunConfig

ROOT = Path(__file__).parents[1]
LAUNCHER = ROOT / "cluster.yaml"
RAYJOB = ROOT / "deploy" / "rayjob.yaml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
JOB_KEYS = {
    *("entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes"),
    *("ttlSecondsAfterFinished", "activeDeadlineSeconds", "rayClusterSpec"),
}
CLUSTER_KEYS = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs"),
}
GROUP_KEYS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
}


def pinned(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (version,) = [line.partition("==")[2] for line in lines if line.startswith(f"{package}==")]
    return version


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return yaml.safe_load(LAUNCHER.read_text())


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(RAYJOB.read_text())}


@pytest.fixture(scope="module")
def cluster(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["RayJob"]["spec"]["rayClusterSpec"]


# --- cluster.yaml --------------------------------------------------------------------------------


def validated(config: dict[str, Any]) -> dict[str, Any]:
    prepare(address=None)
    from ray.autoscaler._private.util import prepare_config, validate_config

    complete = prepare_config(config)
    validate_config(complete)
    return complete


def test_launcher_file_is_valid_for_the_installed_ray(launcher: dict[str, Any]) -> None:
    complete = validated(launcher)
    assert complete["head_node_type"] == "head"
    assert complete["available_node_types"]["gpu_worker"]["resources"]["GPU"] == 1


def test_ray_refuses_a_launcher_file_with_a_typing_error(launcher: dict[str, Any]) -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError, match="max_worker"):
        validated({**launcher, "max_worker": 3})


def test_head_takes_no_work_and_groups_fit_the_whole(launcher: dict[str, Any]) -> None:
    types = launcher["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    groups = [one for name, one in types.items() if name != "head"]
    assert sorted(one["resources"]["GPU"] for one in groups) == [0, 1]
    assert sum(one["max_workers"] for one in groups) == launcher["max_workers"]


def test_launcher_starts_ray_with_a_token_and_a_dashboard_for_the_head_alone(
    launcher: dict[str, Any],
) -> None:
    (head,) = [c for c in launcher["head_start_ray_commands"] if "ray start" in c]
    (worker,) = [c for c in launcher["worker_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token; set +a; ray start" in command
        assert "/home/ray/vqatlas.env;" in command
    assert launcher["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


# --- versions ------------------------------------------------------------------------------------


def test_every_image_and_manifest_has_the_pinned_ray_and_this_python(
    launcher: dict[str, Any], cluster: dict[str, Any]
) -> None:
    tag = f"{pinned('ray')}-py{sys.version_info.major}{sys.version_info.minor}-gpu"
    assert launcher["docker"]["image"] == f"rayproject/ray:{tag}"
    assert f"FROM rayproject/ray:{tag}\n" in DOCKERFILE.read_text()
    assert cluster["rayVersion"] == pinned("ray")


def test_image_of_the_manifest_is_the_one_that_is_built(cluster: dict[str, Any]) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    image = f"vqatlas:{version[1]}"
    assert f"-t {image} ." in DOCKERFILE.read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {container(group)["image"] for group in groups} == {image}


# --- deploy/rayjob.yaml --------------------------------------------------------------------------


def container(group: dict[str, Any]) -> dict[str, Any]:
    (one,) = group["template"]["spec"]["containers"]
    return one


def recipe_of(documents: dict[str, dict[str, Any]]) -> RunConfig:
    text = documents["ConfigMap"]["data"]["recipe.yaml"]
    return parse(override(yaml.safe_load(text), []), "the manifest's recipe")


def test_manifest_has_only_keys_that_kuberay_knows(
    documents: dict[str, dict[str, Any]], cluster: dict[str, Any]
) -> None:
    """Kubernetes drops a mistyped key without a word."""
    assert documents["RayJob"]["apiVersion"] == "ray.io/v1"
    assert set(documents["RayJob"]["spec"]) == JOB_KEYS
    assert set(cluster) == CLUSTER_KEYS
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == GROUP_KEYS


def test_entrypoint_is_a_command_line_of_ours(documents: dict[str, dict[str, Any]]) -> None:
    """Parsed by the command line itself, without running it."""
    words = shlex.split(documents["RayJob"]["spec"]["entrypoint"])
    cut = words.index("&&")
    explain, score = (arguments_of(part) for part in (words[:cut], words[cut + 1 :]))
    assert explain["out"] == score["run_folder"]
    assert explain["out"].startswith("s3://")
    mounts = container(documents["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"])
    folders = {mount["name"]: mount["mountPath"] for mount in mounts["volumeMounts"]}
    assert str(explain["recipe"]) == f"{folders['recipe']}/recipe.yaml"


def arguments_of(words: list[str]) -> dict[str, Any]:
    assert words[:3] == ["python", "-m", "pipeline"]
    commands = typer.main.get_command(app)
    command = commands.commands[words[3]]  # type: ignore[attr-defined]
    return dict(command.make_context(words[3], words[4:]).params)


def test_recipe_of_the_manifest_uses_the_whole_cluster(
    documents: dict[str, dict[str, Any]], cluster: dict[str, Any]
) -> None:
    config = recipe_of(documents)
    gpu, cpu = cluster["workerGroupSpecs"]
    limits = container(gpu)["resources"]["limits"]
    assert config.resources.address == "auto"
    assert config.resources.gpus_per_worker == limits["nvidia.com/gpu"]
    assert config.resources.workers == gpu["maxReplicas"] * limits["nvidia.com/gpu"]
    entrypoint = documents["RayJob"]["spec"]["entrypoint"]
    scorers = cpu["maxReplicas"] * int(container(cpu)["resources"]["limits"]["cpu"])
    assert entrypoint.endswith(f"--set resources.workers={scorers}")
    assert "nvidia.com/gpu" not in container(cpu)["resources"]["limits"]


def test_every_pod_has_the_data_the_store_and_the_token(
    documents: dict[str, dict[str, Any]], cluster: dict[str, Any]
) -> None:
    config = recipe_of(documents)
    assert cluster["authOptions"] == {"mode": "token"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        one = container(group)
        assert one["envFrom"] == [{"secretRef": {"name": "vqatlas-s3"}}]
        paths = {mount["mountPath"] for mount in one["volumeMounts"]}
        assert "/data" in paths
        assert {m["name"] for m in one["volumeMounts"]} == {
            volume["name"] for volume in group["template"]["spec"]["volumes"]
        }
        for kind, amount in one["resources"]["requests"].items():
            assert kind in one["resources"]["limits"], (kind, amount)
    for path in (config.dataset.options["root"], config.model.options["checkpoint"]):
        assert str(path).startswith("/data/")


def test_head_takes_no_work_and_failures_and_idleness_end(
    documents: dict[str, dict[str, Any]], cluster: dict[str, Any]
) -> None:
    spec = documents["RayJob"]["spec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])


def test_no_file_holds_a_secret() -> None:
    for path in (LAUNCHER, RAYJOB, DOCKERFILE):
        text = path.read_text()
        assert not re.search(r"(SECRET_ACCESS_KEY|ACCESS_KEY_ID|AUTH_TOKEN)\s*[:=]\s*\S", text)


# --- known vulnerabilities -----------------------------------------------------------------------


def test_audit_without_a_way_out_is_skipped_and_says_why() -> None:
    """Port 9 of this machine: nobody answers there."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "audit.py"],
        env={**os.environ, **nowhere, "NO_PROXY": "", "no_proxy": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("pip-audit: skipped, its data cannot be reached (requests.")

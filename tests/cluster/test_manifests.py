"""Manifests, the `ray up` file and SkyPilot's: valid with unknown fields refused, and with room for what roles ask."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _node_type_from_group_spec
from ray.autoscaler._private.util import prepare_config, validate_config

from dipp_ray.config import load_config
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.settings import validate
from dipp_ray.training.plan import Node, plan, requests
from dipp_ray.training.sizes import allowed_sizes

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())
KINDS = ("RayCluster", "RayJob", "RayService")
LARGE = ("sd15", "pixart", "sdxl", "sd3", "sana", "flux", "sdxl_dmd2", "sd_turbo")


def manifest(kind):
    return yaml.safe_load((CLUSTER / "kuberay" / f"{kind.lower()}.yaml").read_text())


def cluster_of(document):
    """The cluster's part of any of the three kinds."""
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def faults(document):
    schema = {"$defs": SCHEMA["$defs"], **SCHEMA["kinds"][document["kind"]]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_is_one_that_kuberay_knows(kind):
    document = manifest(kind)
    assert document["kind"] == kind and document["apiVersion"] == "ray.io/v1"
    assert faults(document) == []


@pytest.mark.parametrize(
    ("place", "misspelt"),
    [
        (lambda cluster: cluster, "enableInTreeAutoscaler"),
        (lambda cluster: cluster["autoscalerOptions"], "versions"),
        (lambda cluster: cluster["headGroupSpec"], "rayStartParam"),
        (lambda cluster: cluster["workerGroupSpecs"][0], "maxReplica"),
        (lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"], "nodeSelectors"),
        (lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0], "volumeMount"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_field_would_be_seen(kind, place, misspelt):
    document = copy.deepcopy(manifest(kind))
    place(cluster_of(document))[misspelt] = "x"
    assert any(misspelt in fault for fault in faults(document))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_is_closed_scales_and_keeps_weights(kind):
    cluster = cluster_of(manifest(kind))
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    claims = {
        claim["metadata"]["name"]
        for claim in yaml.safe_load_all((CLUSTER / "kuberay" / "shared.yaml").read_text())
        if claim["kind"] == "PersistentVolumeClaim"
    }
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        [container] = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        } <= claims
        assert {"name": "HF_HOME", "value": f"{mounts['weights']}/hub"} in container["env"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_groups_resources_are_its_pods(kind):
    """What Ray is told a node has, what Kubernetes gives the pod, and the machine that is selected: one thing."""
    for group in cluster_of(manifest(kind))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        given, told = pod["containers"][0]["resources"], dict(group["resources"])
        assert told.pop("CPU") == given["requests"]["cpu"]
        assert told.pop("GPU") == given["requests"]["nvidia.com/gpu"] == given["limits"]["nvidia.com/gpu"]
        [accelerator] = told
        kind_of_gpu = accelerator.removeprefix("accelerator_type:")
        assert kind_of_gpu in pod["nodeSelector"]["nvidia.com/gpu.product"].split("-")
        spot = pod["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
        assert (group["labels"].get("market") == "spot") == spot == group["groupName"].startswith("teachers")


def test_the_head_keeps_its_state_where_it_is_the_clusters():
    """A cluster that outlives its jobs; a job's own is made anew by backoffLimit."""
    for kind in ("RayCluster", "RayService"):
        assert cluster_of(manifest(kind))["gcsFaultToleranceOptions"]["redisAddress"] == "dipp-ray-redis:6379"
    job = manifest("RayJob")["spec"]
    assert job["backoffLimit"] > 0 and job["shutdownAfterJobFinishes"]


def test_the_jobs_command_is_one_of_the_repository():
    words = manifest("RayJob")["spec"]["entrypoint"].split()
    files = [word.removeprefix("/opt/dipp-ray/") for word in words if word.startswith("/opt/dipp-ray/")]
    assert files and all((ROOT / file).is_file() for file in files)
    config = load_config(ROOT / files[1], [str(ROOT / file) for file in files[2:]])
    assert config.run.folder == "/data/runs"


def test_the_services_configuration_is_the_serve_configs():
    config = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    assert config == yaml.safe_load((CLUSTER / "rewards.yaml").read_text())
    [application] = config["applications"]
    validate(application["args"], ServiceConfig, "args")


def ray_up():
    return prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))


def test_the_ray_up_file_is_valid_offline():
    config = ray_up()
    validate_config(config)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_a_misspelt_field_of_the_ray_up_file_would_be_seen():
    for place in (lambda c: c, lambda c: c["available_node_types"]["trainers"], lambda c: c["docker"]):
        config = ray_up()
        place(config)["max_worker"] = 1
        with pytest.raises(jsonschema.ValidationError, match="max_worker"):
            validate_config(config)


def test_only_teachers_are_on_spot():
    for name, node in ray_up()["available_node_types"].items():
        spot = node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert spot == name.startswith("teachers") == (node["labels"].get("market") == "spot")


def test_every_node_has_the_token_and_asks_for_it():
    config = ray_up()
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def node_types(where):
    if where == "aws":
        return {name: dict(kind) for name, kind in ray_up()["available_node_types"].items() if name != "head"}
    groups = cluster_of(manifest(where))["workerGroupSpecs"]
    return {group["groupName"]: _node_type_from_group_spec(group, is_head=False) for group in groups}


def nodes(where, which):
    """A cluster with `min_workers` or `max_workers` nodes of each type."""
    return [
        Node(
            f"{name}-{index}",
            f"{name}-{index}",
            {k: float(v) for k, v in kind["resources"].items()},
            {},
            kind["labels"],
        )
        for name, kind in node_types(where).items()
        for index in range(kind[which])
    ]


@pytest.mark.parametrize("where", ["RayCluster", "RayJob", "aws"])
@pytest.mark.parametrize("name", LARGE)
def test_the_elastic_presets_fit(where, name):
    """At its smallest on the nodes that are always there, at its largest on all that there may be."""
    config = load_config(ROOT / "jobs" / f"{name}.yaml", [str(ROOT / "jobs" / "elastic.yaml")])
    sizes = allowed_sizes(config)
    assert sizes[0].ranks == 16 and sizes[0].teacher == 8
    plan(requests(config, sizes[-1]), nodes(where, "min_workers")).require()
    largest = plan(requests(config, sizes[0]), nodes(where, "max_workers")).require()
    roles = {
        "generator": "trainers",
        "score": "trainers",
        "teacher": "teachers",
        "reward": "rewards",
        "text": "rewards",
    }
    assert all(node.name.startswith(roles[role]) for (role, _), node in largest.where.items())


def test_the_service_has_room_for_its_replicas():
    types = node_types("RayService")
    [application] = yaml.safe_load((CLUSTER / "rewards.yaml").read_text())["applications"]
    config = validate(application["args"], ServiceConfig, "args")
    most = sum((m.replicas if isinstance(m.replicas, int) else m.replicas[1]) * m.role.gpus for m in config.models)
    assert types["rewards"]["max_workers"] * types["rewards"]["resources"]["GPU"] >= most


def test_skypilots_command_is_a_run_on_eight_gpus():
    task = yaml.safe_load((CLUSTER / "sky.yaml").read_text())
    assert task["resources"]["use_spot"] and set(task["resources"]["accelerators"].values()) == {8}
    words = task["run"].replace("\\\n", " ")
    for name, value in task["envs"].items():
        words = words.replace(f"${name}", value)
    verb, command, path, *settings = words.split()
    assert (verb, command) == ("dipp-ray", "train")
    for preset in LARGE:
        config = load_config(ROOT / "jobs" / f"{preset}.yaml", settings)
        machine = Node("one", "one", {"CPU": 192.0, "GPU": 8.0, "accelerator_type:H100": 1.0})
        plan(requests(config, allowed_sizes(config)[0]), [machine]).require()
    assert (ROOT / path).is_file()

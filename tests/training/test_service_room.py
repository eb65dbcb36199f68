"""A reward service that the cluster cannot hold is refused in one sentence, before it is deployed."""

import pytest

from dipp_ray.errors import UserError
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.training import service_room
from dipp_ray.training.plan import Node
from dipp_ray.training.service_room import require_room, require_room_on

NODES = [
    Node("1", "head", {"CPU": 2.0}),
    Node("2", "gpu", {"CPU": 4.0, "GPU": 2.0, "accelerator_type:L4": 1.0, "shelf": 1.0}, {"GPU": 2.0}, {"zone": "a"}),
]


def config(*models, **of_one):
    models = models or [of_one]
    filled = [{"name": f"m{i}", "model": "tiny_models:Brightness"} | model for i, model in enumerate(models)]
    return ServiceConfig.model_validate({"models": filled})


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ({"gpus": 1, "accelerator": "H100"}, "reward 'm0' 0: asks for GPU kind H100, and no fitting node has any"),
        ({"labels": {"zone": "b"}}, "reward 'm0' 0: no node has the labels zone=b"),
        ({"cpus": 8}, "reward 'm0' 0: asks for CPU 8, and the largest fitting node has 4"),
        ({"gpus": 3}, "asks for GPU 3, and the largest fitting node has 2"),
        ({"resources": {"shelf": 2}}, "asks for shelf 2"),
    ],
)
def test_what_no_node_has_is_refused(role, message):
    with pytest.raises(UserError, match=f"cannot hold this service: .*{message}.*; ask for less in its role, or add"):
        require_room_on(config(role=role), NODES)


def test_what_is_taken_now_may_be_given_back():
    require_room_on(config(role={"gpus": 1, "accelerator": "L4", "labels": {"zone": "!b"}}), NODES)


def test_all_models_together_must_find_room_with_their_fewest_replicas():
    gpu = {"role": {"gpus": 1}}
    require_room_on(config(gpu, gpu | {"replicas": [1, 8]}), NODES)
    with pytest.raises(UserError, match=r"reward 'm\d' \d: gpu could hold it, but the other workers leave too little"):
        require_room_on(config(gpu, gpu | {"replicas": 2}), NODES)


def test_a_cluster_that_grows_is_asked(monkeypatch):
    monkeypatch.setattr(service_room, "cluster_nodes", lambda: NODES)
    impossible = config(role={"gpus": 1, "accelerator": "H100"})
    monkeypatch.setattr(service_room.state, "get_cluster_config", lambda: object())
    require_room(impossible)
    monkeypatch.setattr(service_room.state, "get_cluster_config", lambda: None)
    with pytest.raises(UserError, match="H100"):
        require_room(impossible)


def test_the_session_cluster_is_no_autoscaled_one(ray_session):
    require_room(config(role={"cpus": 1}))
    with pytest.raises(UserError, match="asks for GPU 1"):
        require_room(config(role={"gpus": 1}))

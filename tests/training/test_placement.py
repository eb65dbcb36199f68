"""Placement: the plan as tables without a cluster, and once for real on the shared one."""

import pytest

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.training.plan import Node, Request, matches, plan, requests
from dipp_ray.training.sizes import Sizes


def node(name, cpus=0.0, gpus=0.0, kind=None, used=None, resources=None, **labels):
    total = {"CPU": cpus, "GPU": gpus, "memory": 1e9, f"node:{name}": 1.0, **(resources or {})}
    if kind:
        total[f"accelerator_type:{kind}"] = 1.0
    return Node(id=f"id-{name}", name=name, total=total, used=used or {}, labels=labels)


def where(found):
    return {f"{role}{index}": n.name for (role, index), n in found.where.items()}


def config(**roles):
    return RunConfig.model_validate(
        {
            "run": {"steps": 1},
            "model": {"teacher": "t", "t_star": 1},
            "data": {"prompts": "p.parquet", "micro_batches": 4},
            "generator_optim": {"lr": 1e-4},
            "score_optim": {"lr": 1e-4},
            "reward": {"terms": [{"name": "clip", "model": "clip"}], "replicas": 2},
            "roles": roles,
        }
    )


def test_requests_are_the_roles_of_the_configuration():
    asked = requests(
        config(generator={"gpus": 1, "cpus": 3, "accelerator": "H100"}, teacher={"labels": {"role": "t"}}),
        Sizes(generator=2, score=1, teacher=1),
    )
    assert [(r.role, r.index) for r in asked] == [
        ("generator", 0),
        ("generator", 1),
        ("score", 0),
        ("teacher", 0),
        ("reward", 0),
        ("reward", 1),
        ("text", 0),
    ]
    assert asked[1].amounts == {"CPU": 3, "GPU": 1, "accelerator_type:H100": 0.001}
    assert asked[3].labels == {"role": "t"}


def test_a_vae_that_decodes_for_all_rewards_asks_for_room_as_they_do():
    mine = config().model_copy(update={"reward": config().reward.model_copy(update={"decode_once": True})})
    before, after = (sum(r.role == "reward" for r in requests(one, Sizes(1, 1, 1))) for one in (config(), mine))
    assert after * len(mine.reward.terms) == before * (len(mine.reward.terms) + 1)


@pytest.mark.parametrize("reward", [{"app": "shared"}, {"terms": []}])
def test_a_reward_that_is_not_ours_asks_for_nothing(reward):
    mine = config().model_copy(update={"reward": config().reward.model_copy(update=reward)})
    assert "reward" not in {r.role for r in requests(mine, Sizes(1, 1, 1))}


# what is asked for, the nodes, where each worker goes
POSSIBLE = {
    "all on one small node": (
        [Request("generator", 0, 0.5), Request("score", 0, 0.5), Request("teacher", 0, 1)],
        [node("a", 2)],
        {"generator0": "a", "score0": "a", "teacher0": "a"},
    ),
    "four roles on fractions of one GPU": (
        [Request(role, 0, 1, gpus=0.25) for role in ("generator", "score", "teacher", "reward")],
        [node("a", 4, 1)],
        dict.fromkeys(("generator0", "score0", "teacher0", "reward0"), "a"),
    ),
    "each role on its own kind": (
        [
            Request("generator", 0, gpus=1, accelerator="H100"),
            Request("score", 0, gpus=1, accelerator="A100"),
            Request("teacher", 0, gpus=1, accelerator="L4"),
        ],
        [node("a", 4, 1, "L4"), node("b", 4, 1, "H100"), node("c", 4, 1, "A100")],
        {"generator0": "b", "score0": "c", "teacher0": "a"},
    ),
    "labels": (
        [Request("teacher", 0, 1, labels={"role": "teacher"}), Request("generator", 0, 1, labels={"role": "!teacher"})],
        [node("a", 2, role="teacher"), node("b", 2)],
        {"teacher0": "a", "generator0": "b"},
    ),
    "the one with no choice goes first": (
        [Request("generator", 0, 2), Request("teacher", 0, 2, labels={"role": "teacher"})],
        [node("a", 2, role="teacher"), node("b", 2)],
        {"generator0": "b", "teacher0": "a"},
    ),
    "the large one goes first": (
        [Request("teacher", 0, gpus=1), Request("teacher", 1, gpus=1), Request("generator", 0, gpus=2)],
        [node("a", 4, 2), node("b", 4, 2)],
        {"teacher0": "b", "teacher1": "b", "generator0": "a"},
    ),
    "a group takes one GPU a rank, other roles share them": (
        [Request("generator", i, gpus=0.5) for i in (0, 1)] + [Request("teacher", i, gpus=0.5) for i in (0, 1)],
        [node("a", 4, 2)],
        {"generator0": "a", "generator1": "a", "teacher0": "a", "teacher1": "a"},
    ),
    "a pool may share a GPU": (
        [Request("teacher", i, gpus=0.25) for i in range(4)],
        [node("a", 4, 1)],
        {f"teacher{i}": "a" for i in range(4)},
    ),
    "processors stay off the GPU nodes": (
        [Request("text", 0, 1)],
        [node("a", 8, 1), node("b", 2)],
        {"text0": "b"},
    ),
    "unless there is no other": ([Request("text", 0, 4)], [node("a", 8, 1), node("b", 2)], {"text0": "a"}),
    "custom resources": (
        [Request("teacher", 0, 1, resources={"teacher_gpu": 1})],
        [node("a", 8), node("b", 2, resources={"teacher_gpu": 1})],
        {"teacher0": "b"},
    ),
    "tenths add up": (
        [Request("text", i, 0.1) for i in range(10)],
        [node("a", 1)],
        {f"text{i}": "a" for i in range(10)},
    ),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_possible(name):
    asked, nodes, expected = POSSIBLE[name]
    for order in (nodes, nodes[::-1]):  # the plan does not depend on the order in which Ray lists the nodes
        found = plan(asked, order)
        assert (where(found), found.possible, found.waits) == (expected, True, False)


IMPOSSIBLE = {
    "no nodes": ([Request("generator", 0, 1)], [], {"generator0": "the cluster has no nodes"}),
    "no such label": (
        [Request("teacher", 0, 1, labels={"role": "teacher"})],
        [node("a", 8)],
        {"teacher0": "no node has the labels role=teacher"},
    ),
    "no such kind": (
        [Request("score", 0, gpus=1, accelerator="H100")],
        [node("a", 8, 8, "A100")],
        {"score0": "asks for GPU kind H100, and no fitting node has any"},
    ),
    "too large": (
        [Request("score", 0, 9)],
        [node("a", 8)],
        {"score0": "asks for CPU 9, and the largest fitting node has 8"},
    ),
    "not together": (
        [Request("score", 0, 8, gpus=1)],
        [node("a", 8), node("b", 4, 1)],
        {"score0": "no single node has all"},
    ),
    "one too many": (
        [Request("generator", i, gpus=1) for i in range(3)],
        [node("a", 8, 2)],
        {"generator2": "a could hold it, but the other workers leave too little there"},
    ),
    "two ranks of one group on one GPU": (
        [Request("score", 0, gpus=0.5), Request("score", 1, gpus=0.5)],
        [node("a", 8, 1)],
        {"score1": "a could hold it"},
    ),
    "fractions left on two GPUs are no GPU": (
        [Request("generator", 0, gpus=0.6), Request("score", 0, gpus=0.6), Request("teacher", 0, gpus=0.8)],
        [node("a", 8, 2)],
        {"score0": "a could hold it"},
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible(name):
    asked, nodes, expected = IMPOSSIBLE[name]
    found = plan(asked, nodes)
    assert not found.possible
    assert {f"{role}{index}" for role, index in found.unmet} == expected.keys()
    for (role, index), reason in found.unmet.items():
        assert expected[f"{role}{index}"] in reason
    with pytest.raises(UserError) as error:
        found.require()
    text = str(error.value)
    flat = " ".join(text.replace("│", " ").split())
    assert "Placement: impossible" in flat
    for reason in found.unmet.values():
        assert f"unmet: {reason}" in flat
    assert all(f"node {n.name}" in flat for n in nodes)


def test_what_is_used_now_makes_it_wait_not_impossible():
    busy = node("a", 2, used={"CPU": 1.5})
    found = plan([Request("generator", 0, 1)], [busy])
    assert (found.possible, found.waits) == (True, True)
    assert where(plan([Request("generator", 0, 1)], [busy, node("b", 1)])) == {"generator0": "b"}


@pytest.mark.parametrize(
    ("selector", "value", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", None, False),
        ("!a", "b", True),
        ("!a", "a", False),
        ("!a", None, True),
        ("in(a, b)", "b", True),
        ("in(a, b)", "c", False),
        ("!in(a, b)", "c", True),
        ("!in(a, b)", "a", False),
    ],
)
def test_selectors(selector, value, expected):
    assert matches({"key": value} if value else {}, {"key": selector}) is expected


def test_really_held_by_ray(ray_session):
    import ray

    from dipp_ray.training import placement

    @ray.remote
    class Worker:
        def place(self):
            context = ray.get_runtime_context()
            return context.get_node_id(), context.get_placement_group_id(), context.get_assigned_resources()

    def free():
        return sum(n.free["CPU"] for n in placement.cluster_nodes())

    before = free()
    assert before >= 2
    asked = [
        Request("generator", 0, 0.5),
        Request("generator", 1, 0.5),
        Request("teacher", 0),
        Request("reward", 0, 0.5),
    ]
    held = placement.reserve([asked], wait_s=60)
    try:
        actors = [Worker.options(**held.options(*key)).remote() for key in (("generator", 0), ("generator", 1))]
        actors.append(Worker.options(**held.options("teacher", 0)).remote())
        for actor, request in zip(actors, asked, strict=False):
            node_id, group, resources = ray.get(actor.place.remote(), timeout=60)
            assert node_id == held.plan.where[request.role, request.index].id
            assert (group is not None) == (request.cpus > 0)
            assert resources.get("CPU", 0) == request.cpus
        assert free() == pytest.approx(before - 1.0)  # the served half CPU is planned, and left free
        with pytest.raises(ValueError, match="reward 0"):
            held.options("reward", 0)

        said = []
        with pytest.raises(UserError, match="still has no room"):
            placement.reserve([[Request("score", 0, before)]], wait_s=1.5, say=said.append)
        assert said[0].startswith("waiting 0 of 2 s for 1 workers; cluster: ")
        assert "in use now" in said[0]
        for actor in actors:
            ray.kill(actor)
    finally:
        held.release()
        held.release()
    again = placement.reserve([[Request("score", 0, before)]], wait_s=60)
    again.release()

"""The configuration of a service: what is refused, and the Serve config file that deploys it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dipp_ray.errors import UserError
from dipp_ray.serving.deploy import application, command, listening
from dipp_ray.serving.deploy.check import check_service
from dipp_ray.serving.deploy.config import HttpSection, ServiceConfig
from dipp_ray.serving.deploy.entry import build
from dipp_ray.serving.deploy.overview import how_to_call, models_table
from dipp_ray.serving.deploy.reloading import restarts
from dipp_ray.settings import load_settings, validate
from tiny_models import save_clip, save_pipeline

ROOT = Path(__file__).parents[3]
BRIGHT = {"name": "bright", "model": "tiny_models:Brightness"}
TOKENS = "alice:0123456789abcdef0123\n# a comment\n\nbob:fedcba9876543210fedc\n"


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    monkeypatch.delenv("DIPP_RAY_REWARD_TOKENS", raising=False)


def config(*models, **settings):
    return validate({"models": list(models) or [BRIGHT]} | settings, ServiceConfig, "test")


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ([BRIGHT, BRIGHT], {}, "models has two entries named 'bright'"),
        ([BRIGHT | {"replicas": [3, 2]}], {}, "write \\[min, max\\]"),
        ([BRIGHT | {"role": {"workers": 2}}], {}, "set its replicas"),
        ([BRIGHT | {"deviation": 0}], {}, "deviation"),
        ([BRIGHT | {"hinge": 1, "cap": 1}], {}, "both hinge and cap"),
        ([BRIGHT | {"wieght": 1}], {}, "did you mean models\\[0\\].weight"),
        ([], {"queue": {"rows": 8}}, "could never be accepted"),
        ([], {"http": {"prot": 1}}, "did you mean http.port"),
    ],
)
def test_what_cannot_be_is_one_sentence(models, settings, message):
    with pytest.raises(UserError, match=message):
        config(*models, **settings)


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ([BRIGHT | {"model": "nowhere:Thing"}], {}, "nowhere"),
        ([BRIGHT | {"model": "clip", "folder": "/nowhere"}], {}, "/nowhere"),
        ([], {"vae": "/nowhere"}, "/nowhere is no diffusers pipeline folder"),
        ([], {"http": {"tokens": "/nowhere"}}, "http.tokens: /nowhere"),
        ([], {"http": {"host": "0.0.0.0"}}, "listens beyond this machine, which needs tokens"),
    ],
)
def test_what_is_not_there_is_found_before_anything_starts(models, settings, message):
    with pytest.raises(UserError, match=message):
        check_service(config(*models, **settings))


def test_beyond_loopback_it_starts_with_tokens_and_warns(tmp_path):
    (tmp_path / "tokens").write_text(TOKENS)
    open_to_all = config(http={"host": "0.0.0.0", "tokens": str(tmp_path / "tokens")})
    check_service(open_to_all)
    said = "\n".join(how_to_call(open_to_all))
    assert "tokens are required, of: alice, bob" in said and "in the clear" in said and "Bearer $TOKEN" in said
    assert f"chmod 600 {tmp_path / 'tokens'}" in said
    (tmp_path / "tokens").chmod(0o600)
    assert "chmod" not in "".join(how_to_call(open_to_all))
    assert "0123456789abcdef" not in said + str(application.user_config(open_to_all))


def test_a_weight_is_no_part_of_a_models_deployment_and_its_folder_is(tmp_path):
    def versions(**changes):
        made = application.application(config(BRIGHT | changes))
        ingress = made._bound_deployment
        (model,) = (handle._bound_deployment for handle in ingress.init_args[1].values())
        return ingress.version, model.version

    plain = versions()
    assert versions(weight=2.0, cap=1.0, held_out=True) == plain
    assert versions(folder=str(tmp_path))[1] != plain[1]
    assert versions(role={"gpus": 1})[1] != plain[1]


def test_a_version_does_not_depend_on_how_the_same_was_written():
    def versions(model, **settings):
        ingress = application.application(config(model, **settings))._bound_deployment
        return [ingress.version, *(handle._bound_deployment.version for handle in ingress.init_args[1].values())]

    short = BRIGHT | {"role": {"accelerator": "L4", "gpus": 1}}
    long = BRIGHT | {"role": {"gpus": 1, "dtype": "fp32", "accelerator": "L4", "cpus": 0.25}}
    assert versions(short) == versions(long, limits={"rows": 256}, batch_rows=32)
    assert versions(short, deterministic=True)[1] != versions(short)[1]


def test_serve_that_runs_already_is_listened_to_where_it_listens(monkeypatch):
    proxies = {"node": "HEALTHY"}
    monkeypatch.setattr(listening.serve, "status", lambda: SimpleNamespace(proxies=proxies, applications={}))
    monkeypatch.setattr(listening.serve, "start", lambda **_: pytest.fail("Serve runs already"))
    there = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1", port=8123))
    monkeypatch.setattr(listening, "_get_global_client", lambda **_: there)
    monkeypatch.setattr(listening, "front_address", lambda: None)
    listening.start_http(HttpSection(port=8123))
    with pytest.raises(
        UserError, match=r"listens on 127\.0\.0\.1:8123 .* set http\.host=127\.0\.0\.1 and http\.port=8123"
    ):
        listening.start_http(HttpSection(port=8000))
    proxies.clear()
    with pytest.raises(UserError, match="without HTTP"):
        listening.start_http(HttpSection(port=8123))


def test_an_application_of_the_same_name_is_left_alone(monkeypatch):
    applications = {
        "mine": SimpleNamespace(deployments={"Rewards": 1, "clip": 1}),
        "other": SimpleNamespace(deployments={"web": 1}),
    }
    monkeypatch.setattr(command.serve, "status", lambda: SimpleNamespace(applications=applications))
    assert not command.require_name("new", detach=False) and command.require_name("mine", detach=True)
    for name, detach, message in (
        ("mine", False, "runs in this cluster already"),
        ("other", True, "no reward service"),
    ):
        with pytest.raises(UserError, match=message):
            command.require_name(name, detach)


def test_the_table_says_what_each_model_is_to_the_sum():
    table = models_table(config(BRIGHT | {"mean": 2, "deviation": 3, "cap": 1, "required": False, "replicas": [1, 4]}))
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == [
        "bright (not required)",
        "tiny_models:Brightness",
        "1",
        "(s - 2) / 3",
        "cap 1",
        "1 to 4",
        "0.25 CPU",
    ]


def test_the_preset_is_valid():
    assert len(load_settings(ROOT / "jobs" / "rewards.yaml", [], ServiceConfig).models) == 3


def test_the_serve_config_is_valid_strictly_and_its_application_is_built(tmp_path, monkeypatch):
    from ray.serve.schema import ServeDeploySchema

    text = (ROOT / "cluster" / "rewards.yaml").read_text()
    data = yaml.safe_load(text)
    schema = ServeDeploySchema.model_validate(data)
    known = schema.model_dump(exclude_unset=True)  # Serve itself ignores keys that it does not know
    assert known.keys() == data.keys() and known["applications"][0].keys() == data["applications"][0].keys()
    assert schema.applications[0].import_path == "dipp_ray.serving.deploy.entry:build"
    validate(data["applications"][0]["args"], ServiceConfig, "args")
    args = {"models": [BRIGHT | {"model": "clip", "folder": save_clip(tmp_path / "clip")}], "vae": None}
    (tmp_path / "pipeline").mkdir()
    args["vae"] = save_pipeline(tmp_path / "pipeline")
    assert build(args)._bound_deployment.name == "Rewards"
    with pytest.raises(UserError, match="did you mean batch_rows"):
        build(args | {"batch_row": 3})


def test_serve_build_finds_the_application_of_a_file(tmp_path, monkeypatch):
    from ray._common.utils import import_attr

    (tmp_path / "service.yaml").write_text(yaml.safe_dump({"models": [BRIGHT]}))
    monkeypatch.setenv("DIPP_RAY_SERVICE", str(tmp_path / "service.yaml"))
    assert import_attr("dipp_ray.serving.deploy.entry:app")._bound_deployment.name == "Rewards"
    monkeypatch.delenv("DIPP_RAY_SERVICE")
    with pytest.raises(UserError, match="set DIPP_RAY_SERVICE"):
        import_attr("dipp_ray.serving.deploy.entry:app")


def test_what_starts_replicas_anew_is_known_before_it_happens():
    old = config(BRIGHT)
    assert not restarts(old, config(BRIGHT | {"weight": 2.0, "cap": 1.0, "required": False, "held_out": True}))
    assert restarts(old, config(BRIGHT | {"replicas": 2}))
    assert restarts(old, config(BRIGHT, BRIGHT | {"name": "second"}))
    assert restarts(old, config(BRIGHT, batch_rows=8))

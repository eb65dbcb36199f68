"""The one configuration: bad input ends with one sentence that names the place."""

import re
from pathlib import Path

import pytest
import yaml

from dipp_ray.config import RunConfig, allowed_group_sizes, load_config
from dipp_ray.errors import UserError
from dipp_ray.preferences.config import FitConfig
from dipp_ray.serving.deploy.config import ServiceConfig
from minimal import MINIMAL, REWARD


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


def sentence(path, *overrides):
    """What a person reads, which must be one line that begins with the file or repeats the override."""
    with pytest.raises(UserError) as error:
        load_config(path, list(overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_overrides_are_applied_and_typed(path):
    overrides = ["data.batch_size=48", "objective.weight=unit", "run.name=first", "score_optim.betas=[0.9, 0.99]"]
    config = load_config(path, overrides)
    assert (config.data.batch_size, config.micro_batch_size, config.objective.weight) == (48, 4, "unit")
    assert config.score_optim.betas == (0.9, 0.99) and config.path == Path.cwd() / "runs" / "first"
    assert load_config(path).data.batch_size == 24


def test_an_entry_of_a_list_is_set_by_its_number(path):
    terms = "reward.terms=[{name: a, model: clip, folder: x}, {name: b, model: clip, folder: y}]"
    config = load_config(path, [terms, "reward.terms[1].weight=2"])
    assert [term.weight for term in config.reward.terms] == [1, 2]
    assert load_config(path, ["data.prompts=[a, b]", "data.prompts[0]=/c"]).data.prompts[0] == "/c"
    for setting, words in (
        ("reward.terms[2].weight=2", "'terms' has 2 entries, counted from 0"),
        ("reward.terms.weight=2", "'terms' is a list: write terms[0] for its first entry"),
        ("reward.terms[0].wieght=2", "unknown key 'wieght' in reward.terms[0]: did you mean reward.terms[0].weight?"),
        ("reward.terms[0].weight.x=2", "'weight' is a value, not a section"),
        ("ema[0]=2", "'ema' is no list that is there"),
        ("reward.terms[0.weight=2", "is no setting: write section.key=value"),
        ("reward..terms=2", "is no setting: write section.key=value"),
        ("[0]=2", "is no setting: write section.key=value"),
    ):
        assert words in sentence(path, terms, "reward.terms[0].weight=1", setting), setting
    assert "'terms' is no list that is there" in sentence(path, "reward.terms[0].weight=2")


def test_a_later_override_wins_and_defaults_live_in_the_model(path):
    assert load_config(path, ["run.seed=1", "run.seed=2"]).run.seed == 2
    assert load_config(path).objective == RunConfig.model_validate(MINIMAL).objective


def test_the_resolved_copy_gives_the_same_configuration(path, tmp_path):
    config = load_config(path, ["objective.reward_scale=2", REWARD, "log.samples=3"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("override", "section", "nearest"),
    [
        ("data.batchsize=8", "data", "data.batch_size"),  # misspelt
        ("objective.rewardscale=1", "objective", "objective.reward_scale"),
        ("roles.score.zero_stag=2", "roles.score", "roles.score.zero_stage"),
        ("objectiv.weight=unit", "the top level", "objective"),
        ("data.reward_scale=1", "data", "objective.reward_scale"),  # misplaced
        ("data.steps=1", "data", "run.steps"),
        ("t_star=1", "the top level", "model.t_star"),
        ("checkpoint.trackers=[]", "checkpoint", "log.trackers"),
    ],
)
def test_an_unknown_key_names_its_section_and_the_nearest_right_key(path, override, section, nearest):
    message = sentence(path, override)
    assert message.startswith(f"'{override}': ")
    leaf = override.partition("=")[0].split(".")
    leaf = leaf[0] if section == "the top level" else leaf[-1]
    assert f"unknown key '{leaf}' in {section}: did you mean {nearest}?" in message


def test_trackers_are_named_once_and_an_old_configuration_is_read(path):
    assert load_config(path).log.trackers == []
    assert load_config(path, ["log.tensorboard=true"]).log.trackers == ["tensorboard"]
    assert load_config(path, ["log.tensorboard=false"]).log.trackers == []
    assert "names one twice" in sentence(path, "log.trackers=[wandb, mlflow, wandb]")
    assert "log.trackers" in sentence(path, "log.trackers=[neptune]")


def test_an_unknown_key_like_no_other_is_to_be_removed(path):
    assert "unknown key 'qqqqqq' in the top level: remove it" in sentence(path, "qqqqqq=1")


@pytest.mark.parametrize("role", ["generator", "score"])
def test_a_group_size_that_does_not_divide_lists_the_allowed_ones(path, role):
    message = sentence(path, f"roles.{role}.workers=5")
    assert f"roles.{role}.workers=5" in message and "allowed sizes are 1, 2, 3, 4, 6, 12" in message


def test_allowed_group_sizes_are_the_divisors(path):
    assert allowed_group_sizes(12) == [1, 2, 3, 4, 6, 12]
    for workers in allowed_group_sizes(12):
        load_config(path, [f"roles.generator.workers={workers}"])


def test_a_pool_may_have_any_size(path):
    assert load_config(path, ["roles.teacher.workers=5"]).roles.teacher.workers == 5


def test_workers_without_effect_are_refused_with_the_key_to_use(path):
    assert "use reward.replicas=7" in sentence(path, "roles.reward.workers=7")
    assert "roles.text.threads" in sentence(path, "roles.text.workers=2")


@pytest.mark.parametrize("role", ["generator", "score"])
def test_two_ranks_of_a_group_on_one_gpu_are_refused(path, role):
    message = sentence(path, f"roles.{role}.workers=2", f"roles.{role}.gpus=0.5")
    assert f"roles.{role}: 2 ranks at 0.5 GPU" in message and f"give roles.{role}.gpus=1" in message
    load_config(path, [f"roles.{role}.workers=2", f"roles.{role}.gpus=1"])
    load_config(path, [f"roles.{role}.workers=1", f"roles.{role}.gpus=0.5"])
    load_config(path, ["roles.teacher.workers=2", "roles.teacher.gpus=0.5"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("roles.score.frozen=bf16", "frozen=bf16 would round what arithmetic in fp32 reads"),
        ("roles.score.offload=optimizer", "offload=optimizer needs zero_stage=1 or above"),
        ("roles.score={zero_stage: 2, offload: weights}", "offload=weights needs zero_stage=3"),
        ("roles.score={zero_stage: 3, compile: true}", "compile=true at zero_stage=3"),
    ],
)
def test_what_saves_memory_is_refused_where_it_cannot(path, override, said):
    assert said in sentence(path, override)


def test_what_saves_memory_is_taken_where_it_can(path):
    load_config(path, ["roles.score={zero_stage: 3, offload: weights, dtype: bf16, frozen: bf16}"])
    load_config(path, ["roles.score={zero_stage: 1, offload: optimizer, compile: true}"])
    assert load_config(path, ["roles.score.dtype=bf16"]).roles.score.frozen_dtype == "bf16"
    assert load_config(path, []).roles.score.frozen_dtype == "fp32"


def test_one_and_a_half_gpus_are_refused(path):
    assert "gpus=1.5: more than one GPU must be a whole number" in sentence(path, "roles.teacher.gpus=1.5")


def test_a_batch_that_does_not_split_is_refused(path):
    assert "data.batch_size=25 does not split into data.micro_batches=12" in sentence(path, "data.batch_size=25")


@pytest.mark.parametrize("override", ["steps", "=3", "data.batch_size"])
def test_an_override_without_a_value_is_refused(path, override):
    assert sentence(path, override) == f"'{override}' is no setting: write section.key=value"


def test_an_override_below_a_value_is_refused(path):
    assert "'data.prompts.x=1': 'prompts' is a value, not a section" in sentence(path, "data.prompts.x=1")


def test_an_override_that_is_not_yaml_is_refused(path):
    assert "the value is not YAML" in sentence(path, "run.name=[1, 2")


def test_a_value_of_the_wrong_kind_is_named_and_shown(path):
    message = sentence(path, "data.batch_size=many")
    assert "data.batch_size" in message and "'many'" in message
    message = sentence(path, "objective.weight=cubed")
    assert "objective.weight" in message and "'x0_difference'" in message and "'cubed'" in message


def test_a_missing_setting_is_named(path):
    path.write_text(yaml.safe_dump(MINIMAL | {"model": {"t_star": 440}}))
    assert re.search(r"model\.teacher.*required", sentence(path))


def test_a_file_that_is_not_yaml(path):
    path.write_text("run: [1, 2\ndata: {")
    assert f"configuration {path} is not YAML" in sentence(path)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b"])
def test_a_file_without_sections(path, text):
    path.write_text(text)
    assert "holds no sections" in sentence(path)


def test_a_missing_file(tmp_path):
    message = sentence(tmp_path / "none.yaml")
    assert str(tmp_path / "none.yaml") in message and "No such file" in message


def test_a_folder_is_no_configuration(tmp_path):
    assert "Is a directory" in sentence(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.reward_scale=1", "reward.terms has no trained term"),
        ("objective.divergence_timesteps=[0, 980]", "starts at 0, where the score is not defined"),
        ("objective.score_timesteps=[500, 500]", "is empty: low must be below high"),
        ("init.score=checkpoint", "init.score_checkpoint go together"),
        ("reward.decode_once=true", "reward.decode_once is of a run's own service"),
        ("reward={app: rewards, decode_once: true}", "reward.decode_once is of a run's own service"),
        ("reward.terms=[{name: a, model: clip}, {name: a, model: clip}]", "two entries named 'a'"),
    ],
)
def test_settings_that_contradict_each_other(path, override, message):
    assert message in sentence(path, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=3", "objective: Input should be a dictionary"),
        ("generator_optim={}", "generator_optim.lr: Field required"),
        ("objective.reward_scale=-1", "objective.reward_scale: Input should be greater than or equal to 0 (given: -1)"),
        ("objective.reward_scale=.nan", "objective.reward_scale: Input should be a finite number (given: nan)"),
        (
            "objective.divisor_floor=-1",
            "objective.divisor_floor: Input should be greater than or equal to 0 (given: -1)",
        ),
        (
            "objective.score_timesteps=[-1, 9]",
            "objective.score_timesteps.0: Input should be greater than or equal to 0",
        ),
        ("objective.score_times={std: 0}", "objective.score_times.std: Input should be greater than 0 (given: 0)"),
        ("objective.score_times={mean: .nan}", "objective.score_times.mean: Input should be a finite number"),
        (
            "objective.score_times={distribution: normal}",
            "objective.score_times.distribution: Input should be 'uniform'",
        ),
        (
            "objective.score_times={shfit: 3}",
            "unknown key 'shfit' in objective.score_times: did you mean objective.score",
        ),
        ("score_optim.betas=[0, 1]", "score_optim.betas.1: Input should be less than 1 (given: 1)"),
        ("score_optim.bets=[0, 1]", "unknown key 'bets' in score_optim: did you mean score_optim.betas?"),
    ],
)
def test_sections_that_the_mathematics_defines_are_checked_as_the_others(path, override, message):
    assert message in sentence(path, override)


def test_a_held_out_term_alone_is_no_reward_to_train_on(path):
    held_out = "reward.terms=[{name: gold, model: clip, held_out: true}]"
    assert "no trained term" in sentence(path, "objective.reward_scale=1", held_out)
    assert load_config(path, [held_out]).trained_terms == []


def test_a_key_given_twice_is_refused_in_the_file_and_in_an_override(path):
    path.write_text(path.read_text() + "\nema: {decay: 0.9}\nema: {decay: 0.5}\n")
    assert re.search(r"'ema' is given twice, in line \d+ too", sentence(path))
    path.write_text(yaml.safe_dump(MINIMAL))
    assert "'lr' is given twice" in sentence(path, "generator_optim={lr: 1e-4, lr: 1e-5}")


def test_a_path_that_would_become_a_folder_of_an_odd_name_is_refused(path):
    assert "s3:/b/runs: a store's address has two slashes: s3://b/runs" in sentence(path, "run.folder=s3:/b/runs")
    assert "two slashes" in sentence(path, "checkpoint.url=s3:/b/runs")
    assert "of homes your own alone is known" in sentence(path, "model.teacher=~nobody/teacher")


def test_of_two_merges_in_a_mapping_a_list_is_made(path):
    path.write_text("a: &a {x: 1}\nb: &b {y: 2}\nrun: {<<: *a, <<: *b}\n")
    assert "'<<' is given twice" in sentence(path)


def test_merge_keys_go_on_working(path):
    text = path.read_text().replace("score_optim:\n  lr: 0.0002\n", "score_optim:\n  <<: *optim\n  lr: 0.0002\n")
    text = text.replace("generator_optim:\n", "generator_optim: &optim\n  eps: 1.0e-6\n")
    path.write_text(text)
    config = load_config(path)
    assert config.score_optim.eps == config.generator_optim.eps == 1e-6
    assert (config.generator_optim.lr, config.score_optim.lr) == (1e-4, 2e-4)


def test_home_is_expanded_in_every_path(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    term = "reward.terms=[{name: clip, model: clip, folder: ~/clip}]"
    config = load_config(path, ["model.teacher=~/sd15", "run.folder=~/runs", "data.prompts=~/p.parquet", term])
    assert (config.model.teacher, config.run.folder, config.data.prompts) == (
        "/home/me/sd15", "/home/me/runs", "/home/me/p.parquet"
    )  # fmt: skip
    assert config.reward.terms[0].folder == "/home/me/clip"
    assert load_config(path, ["model.teacher=a~/b"]).model.teacher == str(Path.cwd() / "a~" / "b")


def test_paths_mean_the_same_wherever_the_cluster_was_started(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "clip").mkdir(parents=True)
    terms = "reward.terms=[{name: a, model: clip, folder: org/clip}, {name: b, model: clip, folder: org/other}]"
    settings = [
        "model.generator=./first/it/pipeline/", "init={score: checkpoint, score_checkpoint: first/it}", terms,
        "data.prompts=[a.txt, 's3://bucket/*.txt']", "evaluation.prompts=b.txt", "checkpoint.url=s3://bucket/it",
        "reward.token=token",
    ]  # fmt: skip
    config = load_config(path, settings)
    assert config.run.folder == f"{tmp_path}/runs", "a default is a path too"
    assert config.model.teacher == f"{tmp_path}/teacher"
    assert config.model.generator == f"{tmp_path}/first/it/pipeline"
    assert config.init.score_checkpoint == f"{tmp_path}/first/it"
    assert (config.data.prompts, config.evaluation.prompts) == (
        [f"{tmp_path}/a.txt", "s3://bucket/*.txt"], f"{tmp_path}/b.txt"
    )  # fmt: skip
    assert (config.checkpoint.url, config.reward.token) == ("s3://bucket/it", f"{tmp_path}/token")
    folders = [term.folder for term in config.reward.terms]
    assert folders == [f"{tmp_path}/org/clip", "org/other"], "what does not lie here is a hub's id"
    assert load_config(path, ["checkpoint.url=saved"]).checkpoint.url == f"{tmp_path}/saved"


def test_paths_of_a_fit_and_of_a_service_are_made_absolute_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    fit = FitConfig(base="clip", pairs="a.jsonl", held_out="b.jsonl", out="out")
    assert [fit.base, fit.pairs, fit.held_out, fit.out] == [
        f"{tmp_path}/{name}" for name in ("clip", "a.jsonl", "b.jsonl", "out")
    ]
    model = {"name": "a", "model": "clip", "folder": "clip"}
    service = ServiceConfig.model_validate({"models": [model], "vae": "clip", "http": {"tokens": "tokens"}})
    assert [service.models[0].folder, service.vae, service.http.tokens] == [
        f"{tmp_path}/{name}" for name in ("clip", "clip", "tokens")
    ]


@pytest.mark.parametrize("value", ["001", "1.5", "true", "2024-01-01"])
def test_a_name_that_yaml_reads_as_something_else_is_to_be_quoted(path, value):
    assert "put it in quotes" in sentence(path, f"run.name={value}")
    assert load_config(path, [f"run.name='{value}'"]).run.name == value


def test_a_runs_folder_may_lie_in_a_bucket(path, monkeypatch, tmp_path):
    monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path))
    config = load_config(path, ["run.folder=s3://bucket/runs/", "run.name=one"])
    assert (config.place, config.checkpoints) == ("s3://bucket/runs/one", "s3://bucket/runs/one/checkpoints")
    assert config.path.is_relative_to(tmp_path / "copies") and config.path.name == "one"
    other = load_config(path, ["run.folder=s3://other/runs", "run.name=one", "checkpoint.url=s3://third"])
    assert other.path != config.path and other.checkpoints == "s3://third"
    assert "run.folder=gs://bucket/runs: give a local path, or s3://" in sentence(path, "run.folder=gs://bucket/runs")


def test_a_file_of_settings_is_laid_over_another(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(MINIMAL | {"roles": {"generator": {"threads": 3, "cpus": 2}}}))
    second.write_text("roles: {generator: {threads: 5}, score: {threads: 7}}\nadapters: {score: {rank: 4}}\n")
    roles = load_config(first, [str(second)]).roles
    assert (roles.generator.threads, roles.generator.cpus, roles.score.threads) == (5, 2, 7)
    assert load_config(first, [str(second), "roles.score.threads=1"]).roles.score.threads == 1
    assert load_config(first, ["roles.score.threads=1", str(second)]).roles.score.threads == 7, "in order"
    assert load_config(first, [str(second), "adapters.score=null"]).adapters.score is None
    second.write_text("roles: {generator: {thread: 5}}\n")
    assert "did you mean roles.generator.threads" in sentence(first, str(second))
    assert "No such file" in sentence(first, str(tmp_path / "third.yaml"))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("run.name=a/b", r"run.name: write letters, digits, '.', '_' and '-' alone, .* \(given: 'a/b'\)$"),
        ("model.resolution=8", r"model.resolution: write a list of its values, such as \[512, 768\] \(given: 8\)$"),
        ("objective.guidance_scale=", r"objective.guidance_scale: it has no value: write one, or remove the key$"),
    ],
)
def test_what_is_wrong_is_said_in_words(path, setting, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(path, [setting])


def test_a_file_in_another_encoding_is_one_sentence(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("run:\n  name: caf\xe9\n".encode("latin-1"))
    assert sentence(tmp_path / "latin.yaml").endswith("latin.yaml, line 2: its bytes are no UTF-8: save it as that")


@pytest.mark.parametrize(
    "given",
    [
        "data.batch_size=0",
        "objective.rewardscale=3",
        "objectives.reward_scale=3",
        "reward={terms: [{name: clip, model: clip, weights: 2}]}",
        "adapters.generator={rank: 0}",
    ],
)
def test_an_override_is_named_for_the_fault_that_it_brought(path, given):
    assert sentence(path, "run.name=other", given, "run.seed=2").startswith(f"'{given}': ")


def test_of_several_the_last_is_named_that_set_the_value(path, tmp_path):
    above = tmp_path / "above.yaml"
    above.write_text("{ema: {decay: 2}, roles: {}}")
    assert sentence(path, "ema.decay=0.5", str(above)).startswith(f"{above}: ema.decay")
    assert sentence(path, str(above), "ema.decay=3").startswith("'ema.decay=3': ema.decay")


def test_the_file_is_named_for_its_own_faults(path, tmp_path):
    path.write_text(yaml.safe_dump(MINIMAL | {"ema": {"decay": 2}}))
    above = tmp_path / "above.yaml"
    above.write_text("{}")
    assert sentence(path, "run.seed=1", str(above)).startswith(f"{path}: ema.decay")

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts
from dipp_ray.errors import UserError
from dipp_ray.evaluation import evaluate as evaluation
from dipp_ray.evaluation import evaluator
from dipp_ray.evaluation.evaluate import as_table, compared, evaluate_command, evaluate_run, in_words, models_of
from dipp_ray.evaluation.evaluator import how_to_sample
from dipp_ray.evaluation.measure import diversity, diversity_units, load_judge, spread
from dipp_ray.evaluation.sampling import sample_images
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.settings import validate
from settings import InkReward
from tiny import PROMPTS


def bright_judge(images, prompts):
    """A judge for these tests."""
    return {"brightness": images.mean((1, 2, 3)).tolist(), "digit_accuracy": 0.5, "broken": float("nan")}


def in_8_bits(images):
    """As the PNGs hold them."""
    return (images * 255).round() / 255


def changed(config, **sections):
    data = config.model_dump(mode="json")
    for name, values in sections.items():
        data[name] |= values
    return validate(data, RunConfig, "test")


def test_a_run_is_measured_against_its_base_and_teacher(run_config, tiny_world, capsys):
    terms = [
        {"name": "ink", "model": "settings:InkReward"},
        {"name": "gold", "model": "settings:InkReward", "held_out": True},
    ]
    config = changed(run_config, evaluation={"judge": "test_evaluate:bright_judge"}, reward={"terms": terms})
    said = []
    result = evaluate_run(config, said.append)
    assert json.loads((config.path / "evaluation.json").read_text()) == result
    assert (result["prompts"], result["samples"], result["grid"]) == (5, 20, "evaluation_grid.png")
    assert list(result["models"]) == ["base", "aligned", "teacher"]
    keys = ["ink", "gold", "diversity", "saturation", "contrast", "brightness", "digit_accuracy", "broken"]
    keys.append("images_per_second")
    assert all(list(values) == keys for values in result["models"].values())
    assert list(result["metrics"]) == keys
    assert result["metrics"]["gold"] == {"label": "Held-out reward, gold", "better": "higher", "unit": ""}
    assert result["metrics"]["brightness"]["better"] is None
    assert result["metrics"]["digit_accuracy"]["better"] == "higher"
    assert result["models"]["base"]["broken"] is None
    # The rewards are those of the images that the exported folders give.
    prompts = spread(Prompts.listed(PROMPTS), 20)
    scores = {}
    for name, folder in (("base", "base"), ("aligned", "aligned")):
        images = in_8_bits(sample_images(load_pipeline(tiny_world / folder), prompts, 7, 1, 0.0, 64))
        scores[name] = InkReward().reward(images, prompts).numpy()
        assert result["models"][name]["ink"] == pytest.approx(scores[name].mean(), abs=1e-5)
        assert result["models"][name]["diversity"] == pytest.approx(diversity(images, prompts), abs=1e-5)
    assert result["models"]["base"]["ink"] != pytest.approx(result["models"]["aligned"]["ink"], abs=1e-3)
    # Over the same samples; what the judge gives without units has no interval.
    test = stats.ttest_rel(scores["aligned"], scores["base"])
    low, high = test.confidence_interval(0.95)
    difference = result["difference"]["gold"]
    assert (difference["mean"], difference["within"]) == pytest.approx(((low + high) / 2, (high - low) / 2), abs=1e-4)
    measured = {"ink", "gold", "diversity", "saturation", "contrast", "brightness"}
    assert set(result["difference"]) == measured == set(result["within"]["teacher"])
    images = sample_images(load_pipeline(tiny_world / "teacher"), prompts, 7, 3, 1.5, 64)  # as it guides in training
    images = in_8_bits(images)
    assert result["made"] == {"base": "one step", "aligned": "one step", "teacher": "3 steps, guidance 1.5"}
    assert result["models"]["teacher"]["ink"] == pytest.approx(
        InkReward().reward(images, prompts).mean().item(), abs=1e-5
    )
    width, height = Image.open(config.path / "evaluation_grid.png").size
    assert width > 8 * 96 and height > 6 * 96  # two rows of prompts, three models each
    assert [line.split(":")[0] for line in said] == [
        "evaluated base (one step)", "evaluated aligned (one step)", "evaluated teacher (3 steps, guidance 1.5)"
    ]  # fmt: skip


def test_distillation_has_no_base(run_config):
    result = evaluate_run(changed(run_config, model={"generator": None}), lambda _: None)
    assert list(result["models"]) == ["aligned", "teacher"]


@pytest.mark.parametrize(("batch_size", "largest"), [(8, 2), (512, 64)])
def test_no_batch_is_larger_than_a_micro_batch(run_config, tiny_world, monkeypatch, batch_size, largest):
    sizes = []

    def sample(pipeline, prompts, seed, steps, guidance_scale, batch, numbers=None):
        sizes.extend(len(prompts[i : i + batch]) for i in range(0, len(prompts), batch))
        return torch.rand(len(prompts), 3, 8, 8)

    monkeypatch.setattr(evaluator, "sample_images", sample)
    config = changed(run_config, data={"batch_size": batch_size, "micro_batches": 4}, evaluation={"samples": 65})
    evaluation.evaluate({"base": tiny_world / "base"}, config, lambda _: None)
    assert sizes[0] == 1 and sum(sizes) == 66 and max(sizes[1:]) == largest


def no_cluster():
    raise AssertionError("no cluster is needed without reward.app")


def test_the_command_takes_a_run_or_a_pipeline(run_config, tiny_world, tmp_path, capsys):
    by_run = evaluate_command(run_config.path, None, None, None, [], print, no_cluster, no_cluster)
    assert "Trained reward, ink ↑" in capsys.readouterr().out
    assert (run_config.path / "evaluation_grid.png").is_file()
    out = tmp_path / "out"
    by_folders = evaluate_command(
        tiny_world / "aligned",
        tiny_world / "base",
        run_config.path / "config.yaml",
        out,
        [],
        print,
        no_cluster,
        no_cluster,
    )
    for name in ("base", "aligned"):
        one, other = dict(by_run["models"][name]), dict(by_folders["models"][name])
        one.pop("images_per_second"), other.pop("images_per_second")
        assert one == other
    assert (out / "evaluation.json").is_file()


def test_without_a_run_it_says_what_to_give(tiny_world, run_config):
    with pytest.raises(UserError, match="give --config"):
        evaluate_command(tiny_world / "aligned", None, None, None, [], print, no_cluster, no_cluster)
    with pytest.raises(UserError, match="give --out"):
        evaluate_command(
            tiny_world / "aligned", None, run_config.path / "config.yaml", None, [], print, no_cluster, no_cluster
        )
    (run_config.path / "pipeline").unlink()
    with pytest.raises(UserError, match="has no pipeline/ yet"):
        evaluate_command(run_config.path, None, None, None, [], print, no_cluster, no_cluster)


@pytest.mark.parametrize(
    "name", ["judge", "no_such_module:judge", "test_evaluate:nobody", "test_evaluate:PROMPTS", ":"]
)
def test_a_wrong_judge_is_named(name):
    with pytest.raises(UserError, match=f"evaluation.judge '{name}'"):
        load_judge(name)


def test_a_wrong_judge_ends_before_anything_is_sampled(run_config):
    config = changed(run_config, evaluation={"judge": "nowhere:judge"})
    with pytest.raises(UserError, match="nowhere"):
        evaluate_run(config, pytest.fail)


def test_each_prompt_comes_several_times():
    few = spread(Prompts.listed(["a", "b", "b"]), 12)
    assert few == ["a"] * 4 + ["b"] * 8  # as often as they stand in the file
    many = spread(Prompts.listed(list(map(str, range(100)))), 12)
    assert many == ["0"] * 4 + ["33"] * 4 + ["66"] * 4
    assert spread(Prompts.listed(["a", "b"]), 2) == ["a", "a"]


def test_diversity_is_the_mean_distance_within_a_prompt():
    images = torch.zeros(5, 3, 2, 2)
    images[1] = 0.5  # distance sqrt(12) / 2 from the first
    images[2, 0, 0, 0] = 1.0  # another prompt
    images[4] = 1.0
    prompts = ["a", "a", "b", "c", "c"]
    root = 12**0.5
    assert diversity(images, prompts) == pytest.approx((root / 2 + root) / 2)
    assert diversity(images[:1], ["a"]) != diversity(images[:1], ["a"])  # not a number


def test_the_units_of_diversity_are_one_a_prompt_and_their_mean_is_it():
    images, prompts = torch.rand(9, 3, 2, 2), list("aaaabbbcd")
    units = diversity_units(images, prompts)
    assert len(units) == 2 and units.mean() == pytest.approx(diversity(images, prompts))
    pairs = [torch.pdist(images.flatten(1)[:4]), torch.pdist(images.flatten(1)[4:7])]
    assert units.mean() == pytest.approx(torch.cat(pairs).mean().item(), rel=1e-6)


def test_the_teacher_is_guided_as_in_training_and_it_is_said(tiny_world, run_config, monkeypatch):
    assert how_to_sample(tiny_world / "aligned", run_config) == (1, None)
    guided = changed(run_config, objective={"guidance_scale": 4.5})
    assert how_to_sample(guided.model.teacher, guided) == (guided.evaluation.teacher_steps, 4.5)
    alone = changed(guided, evaluation={"teacher_guidance": 1.0, "teacher_steps": 7})
    assert how_to_sample(alone.model.teacher, alone) == (7, 1.0)
    for scale in (0.0, 0.5):  # a pipeline would show 1 instead, without a word
        with pytest.raises(UserError, match=r"guidance_scale=0(\.5)?: .* set evaluation.teacher_guidance=1"):
            how_to_sample(guided.model.teacher, changed(run_config, objective={"guidance_scale": scale}))
    assert in_words(7, 1.0) == "7 steps, guidance 1" and in_words(1, None) == "one step"


def test_a_distillation_is_not_called_aligned(run_config):
    distilled = changed(run_config, objective={"reward_scale": 0.0}, model={"generator": None})
    assert list(models_of(distilled, run_config.path / "pipeline", None)) == ["distilled", "teacher"]
    for config, against in ((distilled, "other"), (changed(run_config, objective={"reward_scale": 0.0}), None)):
        assert list(models_of(config, run_config.path / "pipeline", against)) == ["base", "distilled", "teacher"]


def test_the_table_names_what_is_compared_and_how_each_was_sampled():
    units = {name: {"ink": np.arange(4.0) * way} for name, way in (("base", 1), ("distilled", 2), ("teacher", 3))}
    assert compared(units)["ink"]["mean"] == pytest.approx(1.5)
    assert compared({name: units[name] for name in ("base", "teacher")}) == {}
    result = {
        "samples": 4, "prompts": 2, "within": {}, "difference": compared(units), "metrics": {},
        "models": {name: {"ink": 1.0} for name in units},
        "made": {"base": "one step", "distilled": "one step", "teacher": "3 steps, guidance 1.5"},
    }  # fmt: skip
    table = as_table(result)
    assert [column.header for column in table.columns] == ["", "base", "distilled", "teacher", "distilled − base"]
    assert table.caption == "base: one step; distilled: one step; teacher: 3 steps, guidance 1.5"

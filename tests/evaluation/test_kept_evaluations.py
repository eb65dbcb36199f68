"""Evaluations in shards: what is kept, what a broken-off one does again, and who does it."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import changed
from test_frechet import HALF, Means, script

from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.evaluation import evaluator as evaluators_module
from dipp_ray.evaluation.colours import contrast, saturation
from dipp_ray.evaluation.evaluate import evaluate, evaluate_command
from dipp_ray.evaluation.evaluator import Evaluator
from dipp_ray.evaluation.features import FeatureNetwork
from dipp_ray.evaluation.frechet import frechet, gaussian_of
from dipp_ray.evaluation.kept import Kept, Measured, shards_of
from dipp_ray.evaluation.pairs import pair_units, pairs_of
from dipp_ray.evaluation.pngs import from_pngs, to_pngs
from dipp_ray.training.evaluation import evaluators
from tiny_models import save_clip


@pytest.fixture
def config(run_config, tmp_path):
    """With a CLIP, a network, images to compare with, and a judge."""
    save_clip(tmp_path / "clip")
    (tmp_path / "images").mkdir()
    for number, png in enumerate(to_pngs(torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)))):
        (tmp_path / "images" / f"{number}.png").write_bytes(png)
    features = {"network": script(Means(), tmp_path / "means.pt"), "images": str(tmp_path / "images"), **HALF}
    measures = {"clip": str(tmp_path / "clip"), "features": features, "judge": "test_evaluate:bright_judge"}
    return changed(run_config, evaluation=measures)


def sampled(monkeypatch):
    """The numbers of the images that are sampled from now on, but for each model's first one."""
    numbers, sample = [], evaluators_module.sample_images

    def counted(pipeline, prompts, seed, steps, scale, batch, given=None):
        numbers.extend(given or [])
        return sample(pipeline, prompts, seed, steps, scale, batch, given)

    monkeypatch.setattr(evaluators_module, "sample_images", counted)
    return numbers


class BreaksOff(Evaluator):
    """Its process ends after two shards."""

    def each(self, method, calls):
        for done, answer in enumerate(super().each(method, calls)):
            if method == "shard" and done == 2:
                raise KeyboardInterrupt
            yield answer


def without_speed(result):
    models = {
        name: {k: v for k, v in values.items() if k != "images_per_second"} for name, values in result["models"].items()
    }
    return result | {"models": models}


def test_a_broken_off_evaluation_does_each_shard_once_and_gives_the_same(config, tiny_world, tmp_path, monkeypatch):
    models = {"base": tiny_world / "base", "aligned": tiny_world / "aligned"}
    whole = evaluate(models, config, lambda _: None, tmp_path / "whole")
    numbers, said = sampled(monkeypatch), []
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, config, said.append, tmp_path / "out", BreaksOff(config))
    first = len(numbers)
    assert 0 < first < 20
    result = evaluate(models, config, said.append, tmp_path / "out")
    assert without_speed(result) == without_speed(whole)
    # The third shard was made, and lost with its process.
    assert sorted(numbers[: first - 4] + numbers[first:])[:40] == sorted([*range(20)] * 2)
    assert f"8 images of base are there already, in {tmp_path / 'out' / 'evaluation' / 'base'}" in said
    files = sorted((tmp_path / "out" / "evaluation" / "aligned").glob("*.png"))
    assert [file.name for file in files] == [f"{number:05}.png" for number in range(20)]
    assert not list((tmp_path / "out").rglob("*.npz")), "measures are made anew by another evaluation"


def test_images_are_taken_again_and_measured_anew_and_those_of_another_model_are_not(
    config, tiny_world, tmp_path, monkeypatch
):
    first = evaluate({"base": tiny_world / "base"}, config, lambda _: None, tmp_path)
    numbers = sampled(monkeypatch)
    again = evaluate({"base": tiny_world / "base"}, config, lambda _: None, tmp_path)
    assert numbers == [] and again == first  # the speed too: it is that of the sampling
    image = tmp_path / "evaluation" / "base" / "00003.png"
    image.unlink()
    evaluate({"base": tiny_world / "base"}, config, lambda _: None, tmp_path)
    assert 3 in numbers and len(numbers) == 4, "one shard"
    numbers.clear()
    other = evaluate({"base": tiny_world / "aligned"}, config, lambda _: None, tmp_path)
    assert sorted(numbers) == list(range(20)) and without_speed(other) != without_speed(first)
    numbers.clear()
    evaluate({"base": tiny_world / "aligned"}, changed(config, run={"seed": 8}), lambda _: None, tmp_path)
    assert len(numbers) == 20


def test_measures_of_the_kept_images_by_hand(config, tiny_world, tmp_path):
    said = []
    result = evaluate({"aligned": tiny_world / "aligned"}, config, said.append, tmp_path)
    images = from_pngs([(tmp_path / "evaluation" / "aligned" / f"{i:05}.png").read_bytes() for i in range(20)])
    values = result["models"]["aligned"]
    network = FeatureNetwork.load(config.evaluation.features, torch.device("cpu"))
    others = from_pngs([(tmp_path / "images" / f"{i}.png").read_bytes() for i in range(12)])
    expected = frechet(gaussian_of(network.features(images)), gaussian_of(network.features(others)))
    assert values["frechet"] == pytest.approx(expected, rel=1e-6) and "frechet" not in result["within"]["aligned"]
    clip = FeatureNetwork.load(evaluators_module.clip_settings(config.evaluation.clip), torch.device("cpu"))
    features = torch.from_numpy(clip.features(images)).double()
    prompts = evaluators_module.texts_of(config)
    apart = [1 - features[i] @ features[j] for i in range(20) for j in range(i) if prompts[i] == prompts[j]]
    assert values["clip_diversity"] == pytest.approx(float(np.mean(apart)), rel=1e-3)
    assert values["contrast"] == pytest.approx(contrast(images).mean()) and values["brightness"] is not None
    labels = {key: (about["label"], about["better"]) for key, about in result["metrics"].items()}
    assert labels["frechet"] == ("Fréchet distance", "lower") and labels["saturation"] == ("Saturation", None)
    assert labels["clip_diversity"][1] == "higher" and result["within"]["aligned"]["clip_diversity"] > 0


def test_too_few_images_for_the_features_are_told(config, tiny_world):
    said = []
    small = changed(config, evaluation={"samples": 6, "judge": None})
    evaluate({"base": tiny_world / "base"}, small, said.append)
    assert "6 images are few for 6 features" in said[0]


def test_a_wrong_network_ends_before_anything_is_sampled(config, tiny_world, monkeypatch, tmp_path):
    numbers = sampled(monkeypatch)
    wrong = changed(config, evaluation={"features": {"network": "nowhere.pt", "images": "x", **HALF}})
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        evaluate({"base": tiny_world / "base"}, wrong, pytest.fail, tmp_path / "out")
    wrong = changed(config, evaluation={"clip": str(tmp_path)})
    with pytest.raises(UserError, match="no CLIP model"):
        evaluate({"base": tiny_world / "base"}, wrong, pytest.fail, tmp_path / "out")
    assert numbers == [] and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_actors_give_what_one_process_gives(ray_session, config, tiny_world, tmp_path):
    models = {"aligned": tiny_world / "aligned"}
    alone = evaluate(models, config, lambda _: None)
    both = changed(config, evaluation={"workers": 2})
    said = []
    with evaluators(both, said.append) as placed:
        assert len(placed.actors) == 2
        result = evaluate(models, both, said.append, tmp_path / "out", placed)
    for key, value in without_speed(alone)["models"]["aligned"].items():
        assert result["models"]["aligned"][key] == (None if value is None else pytest.approx(value, rel=1e-5)), key


def test_the_command_takes_settings_and_joins_a_cluster_for_several_workers(config, run_config, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = []

    @contextmanager
    def joined():
        asked.append("joined")
        yield
        asked.append("left")

    @contextmanager
    def placed(config, say):
        asked.append(config.evaluation.workers)
        yield
        asked.append("ended")

    settings = ["evaluation.workers=3", "evaluation.samples=8"]
    evaluate_command(run_config.path, None, None, None, settings, print, joined, placed)
    assert asked == ["joined", 3, "ended", "left"]
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    evaluate_command(run_config.path, None, None, None, settings[1:], print, joined, placed)
    assert asked[4:] == ["joined", 1, "ended", "left"]


def test_a_place_that_cannot_be_written_is_said_before_a_cluster_is_joined(run_config, tmp_path):
    (tmp_path / "prompts.txt").write_text("a")

    def joined():
        pytest.fail("joined")

    settings = ["evaluation.workers=3"]
    with pytest.raises(UserError, match=r"prompts\.txt is a file: choose another --out$"):
        evaluate_command(run_config.path, None, None, tmp_path / "prompts.txt", settings, print, joined, joined)


def test_shards_hold_whole_prompts():
    assert shards_of(list("aabbbac"), 1) == [[0, 1, 5], [2, 3, 4], [6]]
    assert shards_of(list("aabbbac"), 4) == [[0, 1, 5, 2, 3, 4], [6]]
    assert shards_of(["a"] * 3, 2) == [[0, 1, 2]]


def test_pairs_of_shards_are_those_of_all():
    points, prompts = torch.rand(9, 4), list("aaaabbbcd")
    whole = pair_units(pairs_of(points, prompts))
    parts = np.concatenate([pairs_of(points[:4], prompts[:4]), pairs_of(points[4:], prompts[4:])])
    np.testing.assert_allclose(pair_units(parts), whole)
    assert pair_units(pairs_of(points[:1], ["a"])).shape == (0,)


def test_measures_of_other_rewards_are_not_taken(tmp_path):
    kept = Kept(tmp_path, [[0], [1]], "images", "measures")
    kept.keep_measures(0, Measured({"a": np.ones(1)}, {"diversity": np.ones((1, 2))}, np.ones((1, 3))))
    found = kept.measured(0)
    assert (
        found.units["a"].tolist() == [1] and found.pairs["diversity"].shape == (1, 2) and found.features.shape == (1, 3)
    )
    assert kept.measured(1) is None
    assert Kept(tmp_path, [[0], [1]], "images", "other").measured(0) is None
    (tmp_path / "shard_00000.npz").write_bytes(b"PK half of it")
    assert kept.measured(0) is None
    (tmp_path / "00000.png").write_bytes(b"image without the record that follows it")
    assert not kept.has_images(0)
    Kept(tmp_path, [[0], [1]], "other images", "measures")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made_by.json"]
    (tmp_path / "made_by.json").write_text("half")
    assert json.loads((Kept(tmp_path, [[0]], "x", "y").folder / "made_by.json").read_text())["key"]


def test_colours():
    red, grey = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.3)
    red[:, 0] = 1.0
    assert saturation(torch.cat([red, grey, 0 * grey])).tolist() == [1, 0, 0]
    pale = torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert saturation(pale).tolist() == [0.5]
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(1, 3, 2, 2)
    assert contrast(board) == pytest.approx([0.5]) and contrast(grey) == pytest.approx([0.0], abs=1e-7)
    green = board * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert contrast(green) == pytest.approx([0.587 / 2])


def test_pngs_hold_the_nearest_level_and_nothing_that_is_not_finite(tmp_path):
    images = torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 1.2]).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    (png,) = to_pngs(images)
    assert (from_pngs([png])[0, 0, 0] * 255).tolist() == [0, 0, 0, 1, 128, 255]
    (tmp_path / "a.png").write_bytes(png)
    assert Image.open(tmp_path / "a.png").size == (6, 2)
    with pytest.raises(NonFiniteError, match="1 of 2 images"):
        to_pngs(torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), torch.nan)]))

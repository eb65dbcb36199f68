"""The Frechet distance against closed forms and scipy's matrix root, and the networks whose features it is of."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import nn

from dipp_ray.errors import UserError
from dipp_ray.evaluation.evaluator import Evaluator, check_networks
from dipp_ray.evaluation.features import FeatureNetwork, identity_of
from dipp_ray.evaluation.frechet import Gaussian, frechet, gaussian_of
from dipp_ray.evaluation.reference import check_reference, read_statistics, reference_of, write_statistics
from dipp_ray.evaluation.settings import EvaluationSection, FeatureSettings
from dipp_ray.rewards.clip import CLIP_MEAN, CLIP_STD, image_features, load_clip_model
from tiny_models import save_clip

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
CPU = torch.device("cpu")


def diagonal(mean, deviations):
    return Gaussian(np.array(mean, float), np.diag(np.square(deviations).astype(float)), 100)


def test_of_gaussians_with_one_basis_it_is_the_closed_form():
    """|m_a - m_b|^2 + sum (s_a - s_b)^2 where the covariances commute."""
    a, b = diagonal([0, 1, 2], [1, 2, 0]), diagonal([1, 1, 0], [3, 0.5, 1])
    assert frechet(a, b) == pytest.approx(1 + 4 + 4 + 2.25 + 1)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = [Gaussian(turn @ one.mean, turn @ one.covariance @ turn.T, 100) for one in (a, b)]
    assert frechet(*turned) == pytest.approx(frechet(a, b))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9) and frechet(b, a) == pytest.approx(frechet(a, b))


def test_it_is_what_scipys_matrix_root_gives():
    random = np.random.default_rng(1)
    for count, size in ((200, 16), (40, 8)):
        mixes = [random.normal(size=(size, size)) for _ in range(2)]
        sets = [random.normal(size=(count, size)) @ mix + random.normal(size=size) for mix in mixes]
        a, b = (gaussian_of(one) for one in sets)
        (m_a, c_a), (m_b, c_b) = ((one.mean(0), np.cov(one.T)) for one in sets)
        expected = np.square(m_a - m_b).sum() + np.trace(c_a + c_b - 2 * sqrtm(c_a @ c_b).real)
        assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_of_samples_it_comes_to_that_of_their_gaussians():
    random = np.random.default_rng(2)
    a = gaussian_of(random.normal(size=(200_000, 2)) * [1.0, 2.0])
    b = gaussian_of(random.normal(size=(200_000, 2)) * [3.0, 1.0] + [0.0, 5.0])
    assert frechet(a, b) == pytest.approx(25 + 4 + 1, rel=5e-3)


def test_fewer_images_than_features_give_a_finite_distance_and_one_gives_none():
    random = np.random.default_rng(3)
    a, b = (gaussian_of(random.normal(size=(5, 12)).astype(np.float32)) for _ in range(2))
    assert np.isfinite(frechet(a, b)) and frechet(a, b) > 0
    with pytest.raises(ValueError, match="no covariance"):
        gaussian_of(np.zeros((1, 3)))


class Means(nn.Module):
    """The channels' means and squares as features [B, 6, 1, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean((2, 3)), images.square().mean((2, 3))], 1)[:, :, None, None]


class Classes(nn.Module):
    """An Inception of the StyleGAN kind: classes, unless it is asked for features."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.mean((2, 3)) if return_features else images.mean((2, 3)).softmax(1)


def script(module, path):
    torch.jit.script(module).save(str(path))
    return str(path)


@pytest.fixture
def settings(tmp_path):
    """Means of a TorchScript file, against a folder of ten images."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (8 + number % 2, 8, 3), np.uint8)
        folder = tmp_path / "images" / ("deep" if number > 6 else "")
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return FeatureSettings(
        network=script(Means(), tmp_path / "means.pt"),
        images=str(tmp_path / "images"),
        statistics=str(tmp_path / "statistics.npz"),
        **HALF,
    )


def test_a_torchscript_file_sees_images_as_the_settings_say(settings, tmp_path):
    images = torch.rand(40, 3, 8, 8)
    found = FeatureNetwork.load(settings, CPU).features(images)
    seen = images * 2 - 1
    assert found.shape == (40, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, Means()(seen).flatten(1), rtol=1e-5, atol=1e-6)
    inception = FeatureSettings(
        network=script(Classes(), tmp_path / "inception.pt"), size=4, mean=(0, 0, 0), std=(1 / 255,) * 3, images="x"
    )
    flat = torch.full((2, 3, 8, 8), 0.5)
    np.testing.assert_allclose(FeatureNetwork.load(inception, CPU).features(flat), np.full((2, 3), 127.5), rtol=1e-5)


def test_a_clip_folder_knows_its_own_preprocessing(tmp_path):
    save_clip(tmp_path / "clip")
    settings = FeatureSettings(network=str(tmp_path / "clip"), images="x")
    images = torch.rand(3, 3, 16, 16)
    expected = image_features(load_clip_model(tmp_path / "clip"), images, CLIP_MEAN, CLIP_STD).detach()
    np.testing.assert_allclose(FeatureNetwork.load(settings, CPU).features(images), expected, rtol=1e-4, atol=1e-6)
    assert identity_of(settings)["mean"] == list(CLIP_MEAN)


def test_statistics_are_made_once_of_the_images_and_read_after(settings, tmp_path):
    evaluator = Evaluator.__new__(Evaluator)
    evaluator.network, said = FeatureNetwork.load(settings, CPU), []

    def features_of(parts, count):
        assert count == 10
        return np.concatenate([evaluator.features_of(part) for part in parts])

    made = reference_of(settings, features_of, said.append)
    assert made.count == 10 and made.mean.shape == (6,) and said == [
        f"{settings.statistics}: statistics of the 10 images in {settings.images}"
    ]  # fmt: skip
    files = sorted((tmp_path / "images").rglob("*.png"))
    pixels = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255 for file in files]
    expected = np.concatenate([Means()(one * 2 - 1).flatten(1) for one in pixels])
    np.testing.assert_allclose(made.mean, expected.mean(0), rtol=1e-5, atol=1e-6)
    read = reference_of(settings, lambda parts, count: pytest.fail("it was made"), said.append)
    assert frechet(made, read) == pytest.approx(0, abs=1e-12) and len(said) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "other.pt"}, r"statistics in .*statistics\.npz are of another network: name the one"),
        ({"size": 16}, "are of another size"),
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, "are of another mean and std"),
    ],
)
def test_statistics_of_another_network_are_refused(settings, tmp_path, changes, sentence):
    script(nn.Flatten(), tmp_path / "other.pt")
    write_statistics(tmp_path / "statistics.npz", diagonal([0] * 6, [1] * 6), identity_of(settings))
    check_reference(settings)
    if "network" in changes:
        changes = {"network": str(tmp_path / "other.pt")}
    with pytest.raises(UserError, match=sentence):
        check_networks(EvaluationSection(features=settings.model_copy(update=changes)))


def test_what_cannot_be_compared_with_is_one_sentence(settings, tmp_path):
    def refused(sentence, **changes):
        with pytest.raises(UserError, match=sentence):
            check_reference(settings.model_copy(update=changes))

    refused("does not say how its images are normalised: set mean and std", mean=None)
    refused("there is no CLIP model in|is no folder|does not exist", network=str(tmp_path))
    refused("holds 0 images", images=str(tmp_path / "nowhere"))
    refused("there is no .*statistics.npz: set images", images=None)
    (tmp_path / "statistics.npz").write_bytes(b"PK no")
    refused("holds no statistics that were saved here")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))  # pytorch-fid's, of who knows what
    refused("holds no statistics that were saved here")
    with pytest.raises(ValueError, match="compares with nothing"):
        FeatureSettings(network="x")


def test_a_file_that_is_no_network_or_takes_no_such_images_is_told(settings, tmp_path):
    (tmp_path / "no.pt").write_text("no")
    with pytest.raises(UserError, match=r"no\.pt is no TorchScript file"):
        FeatureNetwork.load(settings.model_copy(update={"network": str(tmp_path / "no.pt")}), CPU)
    linear = script(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), tmp_path / "linear.pt")
    network = FeatureNetwork.load(settings.model_copy(update={"network": linear}), CPU)
    with pytest.raises(UserError, match=r"does not take images of \[3, 9, 9\].*set its size"):
        network.features(torch.rand(2, 3, 9, 9))
    total = script(Total(), tmp_path / "total.pt")
    with pytest.raises(UserError, match="gives no features"):
        FeatureNetwork.load(settings.model_copy(update={"network": total}), CPU).features(torch.rand(2, 3, 8, 8))


class Total(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum()


def test_statistics_name_what_they_are_of(settings, tmp_path):
    write_statistics(tmp_path / "statistics.npz", diagonal([1, 2], [1, 3]), identity_of(settings))
    with np.load(tmp_path / "statistics.npz", allow_pickle=False) as found:
        assert json.loads(str(found["network"]))["std"] == [0.5] * 3
    read = read_statistics(tmp_path / "statistics.npz", identity_of(settings))
    assert read.mean.tolist() == [1, 2] and read.covariance.tolist() == [[1, 0], [0, 9]] and read.count == 100

"""The demo end to end: real images, a trained network, and the two answers that must agree."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from capalloc import propagate
from capalloc.app import demo
from capalloc.app.demo import CHANNELS, accuracy, build, load_digits, run_demo, train
from lacking import lack


@pytest.fixture(
    scope="module", params=[((4, 4), 1), pytest.param((CHANNELS, 0), marks=pytest.mark.slow)], ids=["small", "whole"]
)
def result(request):
    """A demo of fewer channels, and the demo."""
    channels, seed = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CHANNELS", channels)
        return run_demo(seed, progress=False)


def test_network_reads_digits(result):
    assert result.accuracy > 0.94


def test_predicted_total_is_the_measured_rank(result):
    """Parameters less hidden channels, as no unit of this network is dead (docs/theory.md, section 4)."""
    expected = result.measured.attrs["num_params"] - result.num_hidden
    assert result.predicted.attrs["unused_params"] == 0
    assert result.predicted.total == pytest.approx(expected, abs=1e-6)
    assert result.measured.attrs["rank"] == expected
    assert result.measured.total == pytest.approx(expected, abs=1e-6)


def test_maps_agree(result):
    agreed = result.agreement
    assert agreed["correlation"] >= 0.9
    assert agreed["correlation"] > agreed["correlation_backwards"]
    assert agreed["total_variation"] <= 0.08
    assert agreed["total_variation_of_inputs"] <= 0.08
    assert result.measured.attrs["metric"] == result.predicted.attrs["metric"] == "variance"
    assert float(result.measured.capacity[0, 0, 0]) == pytest.approx(0, abs=1e-9)  # a pixel that is always black


def test_page_is_written_from_the_result(result, tmp_path):
    result.write(tmp_path / "demo.html")
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 4  # two maps, their difference, the standard error of the predicted one
    assert "conv1.weight" in page
    assert all(f"{value:.3f}" in page for value in result.agreement.values())
    assert not re.search(r"src=\"http|<link", page)  # nothing is fetched


def test_digits_are_split_without_overlap():
    digits = load_digits(seed=0)
    assert len(digits.train_images) + len(digits.test_images) == 1797
    assert digits.train_images.shape[1:] == (1, 8, 8)
    assert float(digits.train_images.min()) == 0
    assert float(digits.train_images.max()) == 1
    train_set = {image.numpy().tobytes() for image in digits.train_images}
    overlap = sum(image.numpy().tobytes() in train_set for image in digits.test_images)
    assert overlap == 0
    assert len(digits.test_labels.unique()) == 10


def test_same_seed_same_network_and_the_global_random_state_stays():
    digits = load_digits(seed=0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (train(digits, seed, epochs=1) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_untrained_network_gives_the_same_total():
    digits = load_digits(seed=0)
    allocation = propagate(build(0), digits.test_images[:10], gates="gaussian", solver="markov")
    assert allocation.total == pytest.approx(1928 - 16)


def test_accuracy_counts_hits():
    model = nn.Flatten()
    images = torch.eye(3)[:, None]
    assert accuracy(model, images, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)


def test_says_how_to_get_scikit_learn(monkeypatch):
    lack(monkeypatch, "sklearn")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'capalloc\[demo\]'"):
        load_digits(seed=0)

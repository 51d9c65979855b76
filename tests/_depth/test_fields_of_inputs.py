"""Receptive fields of several inputs, and by token, against the same networks on one tensor of vectors."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc.app.report import report_html
from capalloc.results import load
from several import Text
from zoo import seeded_module


class CausalAfter(nn.Module):
    """A causal convolution of width 3 over token vectors, scores at every token."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4, 5)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(F.pad(h.mT, (2, 0)))).mT)


class CausalText(nn.Module):
    """The same from token ids; a mask that closes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(7, 2), CausalAfter()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.embed(ids)
        return self.net(h if mask is None else h * mask[..., None])


class Pair(nn.Module):
    """An image and a wave that meet row by row; a third input is not read at the position."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(1, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, image: Tensor, wave: Tensor, late: Tensor | None = None) -> Tensor:
        found = torch.relu(self.c(image)).mean(-1) + self.d(wave)
        return found if late is None else torch.cat([found, late[:, None, None].expand(-1, 2, 1)], -1)


class PairOfVector(nn.Module):
    """The pair as a network of one vector."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :36].reshape(-1, 1, 6, 6), z[:, 36:].reshape(-1, 2, 6))


IDS = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0))


def pair() -> tuple[nn.Module, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    image, wave = (torch.randn(*shape, generator=draws).double() for shape in ((2, 1, 6, 6), (2, 2, 6)))
    return seeded_module(Pair), image, wave


@pytest.mark.parametrize("of", ["energy", "capacity"])
def test_the_field_of_a_token_is_that_of_its_vectors(of):
    model = seeded_module(CausalText)
    by_token = capalloc.receptive_field(model, IDS, output_position=4, of=of)
    fed = capalloc.receptive_field(model.net, model.embed(IDS).detach(), output_position=(4, None), of=of)
    assert by_token.output_position == (4, None)
    assert by_token.map.dims == ("token",)
    np.testing.assert_allclose(by_token.map, fed.map.sum("column"), rtol=1e-9)
    np.testing.assert_array_equal(by_token.support, fed.support.any("column"))
    np.testing.assert_array_equal(by_token.influence, fed.influence.any("column"))
    token, row = by_token.axes["token"], fed.axes["row"]
    assert (token.start, token.stop, token.stride, token.cut) == (2, 5, 1.0, False) == (row.start, row.stop, 1.0, False)
    assert by_token.area_95 <= 3


def test_the_middle_token_stands_by_default_and_other_outputs_are_as_ever():
    assert capalloc.receptive_field(seeded_module(CausalText), IDS).output_position == (4, None)
    assert capalloc.receptive_field(seeded_module(CausalText), IDS, output_position=(None, 3)).output_position == (
        None,
        3,
    )
    ids = IDS[:, :5]
    text = capalloc.receptive_field(seeded_module(Text), ids, outputs=lambda returned: returned["logits"])
    assert text.output_position == (None,)


def test_two_inputs_have_fields_of_their_own():
    model, image, wave = pair()
    found = capalloc.receptive_field(model, (image, wave), output_position=2)
    flat = capalloc.receptive_field(
        PairOfVector(model), torch.cat([image.flatten(1), wave.flatten(1)], 1), output_position=2
    )
    for ours, theirs in ((found.map, flat.map), (found.support, flat.support), (found.influence, flat.influence)):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert sum(float(values.sum()) for values in found.maps.values()) == pytest.approx(1)
    assert (found.axes["image row"].start, found.axes["image row"].stop) == (1, 4)
    assert (found.axes["wave column"].start, found.axes["wave column"].stop) == (1, 4)
    assert found.moving == ("image row", "wave column")
    assert int(found.supports["image"].sum()) == 18
    assert int(found.influences["wave"].sum()) == 6
    assert found.influence_sizes["image column"] == 6


def test_fields_of_inputs_are_saved_and_shown(tmp_path):
    model, image, wave = pair()
    found = capalloc.receptive_field(model, {"image": image, "wave": wave, "late": wave[:, 0, 0]}, output_position=2)
    assert not found.supports["late"].any()  # no path from it reaches the position
    found.save(tmp_path / "field.nc")
    again = load(tmp_path / "field.nc")
    assert again.data.identical(found.data)
    assert "image row 3, wave column 3" in repr(again)
    assert again._repr_html_().count("<figure>") == 3
    figure = again.figure()
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["image", "wave", "late"]
    plt.close(figure)
    page = report_html({"field": again})
    assert page.count("data-explorer=") == 3
    assert set(again.to_pandas("inputs")["input_name"]) == {"image", "wave", "late"}
    with pytest.raises(ValueError, match="there is no input 'sound'; there are image, wave, late"):
        again.plot(name="sound")


def test_a_field_is_of_one_mask():
    model, mask = seeded_module(CausalText), torch.ones_like(IDS)
    mask[:, 3] = 0
    alike = capalloc.receptive_field(model, {"ids": IDS, "mask": mask}, output_position=4)
    assert alike.support.values.nonzero()[0].tolist() == [2, 4]  # the mask is a constant of the call
    mask[1, 2] = 0
    for method in (
        lambda given: capalloc.receptive_field(model, given),
        lambda given: capalloc.propagate(model, given, solver="segments"),
        lambda given: capalloc.propagate(model, given, solver="markov", metric="variance"),
    ):
        with pytest.raises(ValueError, match="mask differ between the examples and have no derivative"):
            method({"ids": IDS, "mask": mask})

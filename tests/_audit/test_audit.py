"""Every kind of finding on a network that was made to have it, and none where there is nothing to find."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from typer.testing import CliRunner

import capalloc
from capalloc._audit import audit as audit_module
from capalloc._audit.observe_channels import ReadChannels
from capalloc.app.cli import app
from capalloc.app.cli.as_json import as_dict
from capalloc.app.report import report_html
from capalloc.results import Allocation, Audit, Finding
from capalloc.results.audit_findings import by_weight
from capalloc.results.evidence import Evidence, layer_table
from capalloc.results.findings import findings, kernels, low_use, regions, unsettled
from ruleless import shifted


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def examples(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def found(audit: Audit, word: str) -> Finding:
    """The one finding that speaks of it."""
    (only,) = [f for f in audit.findings if word in f.what]
    return only


def dense(*widths: int) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        layers: list[nn.Module] = []
        for below, above in itertools.pairwise(widths):
            layers += [nn.Linear(below, above), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return make


def test_nothing_is_found_where_nothing_is() -> None:
    audit = capalloc.audit(made(dense(6, 5, 3)), examples(200, 6), trained=True)
    assert audit.findings == []
    assert "nothing found" in str(audit)
    assert audit.data["use"].to_numpy() == pytest.approx(1, abs=0.2)


def test_dead_units_are_counted_by_layer() -> None:
    net = made(dense(6, 10, 4))
    with torch.no_grad():
        net[0].bias[:7] = -100.0
    x = examples(80, 6)
    audit = capalloc.audit(net, x, trained=True)
    finding = found(audit, "dead")
    assert finding.level == "serious"
    assert finding.what.startswith('layer "0": 7 of 10 units are dead')
    assert int((net[0](x) > 0).any(0).logical_not().sum()) == 7
    assert audit.data["dead"].sel(layer="0") == 7
    unused = found(audit, "in no use")
    assert unused.what.startswith(f"{7 * 7 + 4 * 7} parameters")  # both sides of each
    assert audit.findings[0] == finding


def test_a_frozen_layer_is_named_and_counted_if_asked_for() -> None:
    net, x = made(dense(6, 10, 4)), examples(80, 6)
    with torch.no_grad():
        net[0].bias[:7] = -100.0
    net[0].requires_grad_(False)
    audit = capalloc.audit(net, x, trained=True)
    assert any("fixed: 0.weight, 0.bias; params='all'" in note for note in audit.data.attrs["notes"])
    assert audit.data["layer"].to_numpy().tolist() == ["2"]
    whole = capalloc.audit(net, x, params="all", trained=True)
    assert found(whole, "dead").what.startswith('layer "0": 7 of 10 units are dead')
    assert whole.total == capalloc.measure(net, x, params="all").total


def test_layers_that_repeat_one_another() -> None:
    """Two linear layers in a row are one of rank 3: the second reads 20 channels in 3 directions."""
    audit = capalloc.audit(
        made(lambda: nn.Sequential(nn.Linear(3, 20), nn.Linear(20, 4))), examples(120, 3), trained=True
    )
    assert audit.total == pytest.approx(3 * 4 + 4, abs=0.5)
    assert found(audit, 'layer "0": use').level == "worth a look"
    assert "20 channels, and 3 directions" in found(audit, "directions").what
    assert found(audit, "directions").do.endswith("85%")


def test_layers_are_not_called_wide_for_parameters_that_no_path_uses() -> None:
    """Dead units leave a layer's other parameters as independent as they were."""
    net = made(dense(6, 40, 4))
    with torch.no_grad():
        net[0].bias[:30] = -100.0
    audit = capalloc.audit(net, examples(200, 6), trained=True)
    assert float(audit.data["use"].sel(layer="0")) < 0.5
    assert not [f for f in audit.findings if ": use" in f.what]
    assert found(audit, "dead").value == 30


def test_a_channel_that_repeats_another_is_named() -> None:
    """Two units of equal weights, and one of multiplied ones, are one unit; the others are not called alike."""
    net = made(dense(6, 14, 4))
    with torch.no_grad():
        for one, factor in ((5, 1.0), (7, 3.0)):
            net[0].weight[one], net[0].bias[one] = factor * net[0].weight[2], factor * net[0].bias[2]
    finding = found(capalloc.audit(net, examples(200, 6), trained=True), "twice")
    assert finding.what.startswith(
        'layer "2" reads 2 channels twice: channel 5 is channel 2 again, channel 7 is channel 2'
    )
    assert finding.value == 2


def test_too_few_examples_to_compare_channels_are_told() -> None:
    notes = capalloc.audit(made(dense(6, 40, 4)), examples(100, 6), trained=True).data.attrs["notes"]
    assert [note for note in notes if "4 samples a channel, 160 for layer 2" in note]


def test_kernels_that_reach_into_padding_alone_are_found() -> None:
    """A kernel of dilation 16 on 16 places reads the middle alone; one of dilation 2 is used throughout."""
    net = made(lambda: nn.Sequential(*(nn.Conv1d(1, 1, 3, padding=d, dilation=d, bias=False) for d in (2, 16))))
    scores, sizes = capalloc.prune_scores(net, examples(4, 1, 16)), {"0.weight": 3, "1.weight": 3}
    layers = layer_table(sizes, None, scores, {"0": (1, 1), "1": (1, 1)})
    (only,) = kernels(Evidence(layers, 6, scores=scores))
    assert only.what.startswith('layer "1": 2 of the 3 places of its kernel meet nothing but padding')
    assert (only.value, only.weight) == (2, 2 / 6)


def test_a_layer_that_is_never_called_is_told_apart() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.forgotten, self.times_zero = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0.0 * self.times_zero(x)

    whole = [
        f.what for f in capalloc.audit(made(Forgetful), examples(60, 4), trained=True).findings if "layer" in f.what
    ]
    assert 'layer "forgotten": the model never calls it' in whole
    assert 'layer "times_zero": no path goes through it on these examples' in whole


def test_directions_do_not_depend_on_the_scale_of_channels() -> None:
    x = examples(500, 3).double()
    mixed = torch.cat([x, x @ torch.randn(3, 3, dtype=torch.float64), torch.ones(500, 1, dtype=torch.float64)], 1)
    for scale in (torch.ones(7), torch.logspace(-4, 4, 7)):
        channels = ReadChannels()
        for part in (mixed * scale).split(100):
            channels.add(part)
        assert channels.directions() == 3
    few = ReadChannels()
    few.add(mixed[:20])
    assert np.isnan(few.directions())
    constant = ReadChannels()
    constant.add(torch.ones(100, 2))
    assert constant.directions() == 0
    assert constant.repeats() == few.repeats() == []


def test_a_field_smaller_than_the_input() -> None:
    net = made(lambda: nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 1, 3, padding=1)))
    assert "sees 5 of 16" in found(capalloc.audit(net, examples(20, 1, 16), trained=True), "sees").what


def test_inputs_that_never_vary() -> None:
    x = examples(100, 8)
    x[:, 2:5] = 1.0
    net = made(dense(8, 6, 3))
    assert found(capalloc.audit(net, x, trained=True), "never vary").what.startswith("3 inputs never vary")
    none = found(capalloc.audit(net, x, metric="variance", trained=True), "get no capacity")
    assert none.what == "3 of 8 inputs get no capacity"


def known(values: list[float] | np.ndarray, axes: tuple[str, ...], **attrs: object) -> Evidence:
    """Evidence of a map alone."""
    capacity = xr.DataArray(np.asarray(values, float), dims=axes)
    tensors = xr.DataArray([float(capacity.sum())], dims="parameter", coords={"parameter": ["weight"]})
    allocation = Allocation(capacity, 0.0, tensors, attrs={"num_params": 100, "notes": [], **attrs})
    return Evidence(pd.DataFrame(columns=Audit.COLUMNS, dtype=float), 100, dict(capacity.sizes), allocation)


def test_inputs_by_their_share() -> None:
    little, much = sorted(findings(known([0.1, *[1.0] * 10, 8.0], ("input",))), key=lambda f: f.what)
    assert little.what.startswith("input 0 gets little: 0.066 times the mean")
    assert much.what.startswith("input 11 gets much: 5.3 times the mean")
    assert findings(known([1.0, 1.1, 0.9], ("input",))) == []
    guided = findings(known([0.1, *[1.0] * 10, 8.0], ("input",), solver="markov"))
    assert all(f.what.endswith("(a guide, which assumes total decoupling)") for f in guided)


def test_pixels_of_one_of_several_inputs_are_not_named_one_by_one() -> None:
    several = known([0.01, *[1.0] * 8, 9.0], ("entry",))
    assert several.allocation is not None
    places = ["0, 0, 0", "0, 0, 1", "0, 0, 2", *map(str, range(7))]
    named = {"input_name": ("entry", ["image"] * 3 + ["numbers"] * 7), "place": ("entry", places)}
    told = replace(
        several, allocation=several.allocation.replace(capacity=several.allocation.capacity.assign_coords(named))
    )
    assert [f.what.split(":")[0] for f in findings(told)] == ["numbers at 6 gets much"]


def test_what_is_missing_counts_as_doubt() -> None:
    """A map whose distance to the measured one may be .3 says nothing of single inputs, regions and layers."""
    rough = known([0.1, *[1.0] * 10, 8.0], ("input",), missing=0.3)
    assert [f.docs for f in findings(rough)] == ["how-to/measure-or-propagate.md"]
    layers = pd.DataFrame(np.nan, ["a"], list(Audit.COLUMNS)).assign(parameters=1000.0, capacity=200.0, use=0.2)
    assert len(list(low_use(replace(rough, layers=layers)))) == 1  # 18 x .3 more parameters make no half of them
    assert not list(low_use(replace(rough, layers=layers.assign(parameters=12.0, capacity=2.4))))


def test_regions_by_what_a_pixel_gets() -> None:
    image = np.ones((1, 9, 10))
    image[:, :3, :3] = 0.1
    (corner,) = regions(known(image, ("channel", "row", "column")))
    assert corner.what.startswith("the top left gets little: 0.1")
    assert list(regions(known(np.zeros((1, 9, 9)), ("channel", "row", "column")))) == []


def test_what_is_not_settled() -> None:
    moving, rough = unsettled(known([30.0, 30.0], ("input",), half_total=45.0, missing=0.04, noise=0.03))
    assert moving.what == "the total still moves with the examples: 45 on half of them, 60 on all"
    assert rough.what == "the map is a rough one: 0.04 may be missing, and 0.03 is noise of the probes"
    assert list(unsettled(known([30.0, 30.0], ("input",), half_total=59.0, missing=0.02))) == []
    (noisy,) = unsettled(known([30.0, 30.0], ("input",), noise=0.08))
    assert noisy.what == "the map is a rough one: 0.08 is noise of the probes"
    (lacking,) = unsettled(known([30.0, 30.0], ("input",), missing=0.12, noise=0.001))
    assert lacking.what == "the map is a rough one: 0.12 may be missing"


def test_layers_that_few_examples_limit_are_not_called_wide() -> None:
    """What is not in use on them may be on others: as much more as the last half added, or any number."""
    layers = pd.DataFrame(np.nan, ["a"], list(Audit.COLUMNS)).assign(parameters=100.0, capacity=40.0, use=0.4)
    for told, found in (({}, 1), ({"half_total": 55.0}, 1), ({"half_total": 40.0}, 0), ({"limited_by_data": True}, 0)):
        assert len(list(low_use(replace(known([30.0, 30.0], ("input",), **told), layers=layers)))) == found
    (few,) = unsettled(known([30.0, 30.0], ("input",), limited_by_data=True))
    assert few.what == "these examples make fewer constraints than there are parameters, and limit the total"


def test_what_does_not_matter_is_not_found() -> None:
    """Draws of weights by the rules scatter, norms have no width, parameters of value zero are in use."""

    def drawn() -> nn.Module:
        net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
        nn.init.kaiming_normal_(net[0].weight)
        nn.init.xavier_normal_(net[2].weight)
        nn.init.zeros_(net[0].bias)
        return net

    assert capalloc.audit(made(drawn), examples(200, 10)).findings == []
    normed = made(
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    )
    audit = capalloc.audit(normed, examples(100, 1, 8), trained=True)
    assert float(audit.data["use"].sel(layer="1")) < 0.5  # the convolution before it has the same symmetries
    assert not [f for f in audit.findings if 'layer "1": use' in f.what]
    shut = made(drawn)
    with torch.no_grad():
        shut[0].bias[:6] = -50.0
    audit = capalloc.audit(shut, examples(200, 10), trained=True)
    unused = found(audit, "in no use")
    assert unused.what.startswith(f"{6 * 11 + 3 * 6} parameters")
    assert unused.what.endswith("most in 0.weight (60), 2.weight (18), 0.bias (6)") or "0.bias" not in unused.what
    lost = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    with torch.no_grad():
        lost[0].bias.fill_(-100.0)
    audit = capalloc.audit(lost, examples(100, 4))
    assert not [f for f in audit.findings if "0 directions" in f.what]
    assert [f for f in audit.findings if "no path goes through it" in f.what]
    assert found(audit, "passes nothing").level == "serious"


@pytest.mark.parametrize(("gain", "level"), [(0.5, None), (0.05, "to know"), (1e-4, "worth a look"), (1e-8, "serious")])
def test_how_serious_a_loss_of_energy_is(gain: float, level: str | None) -> None:
    """By what all layers do together: one linear layer whose weights are multiplied has that gain, exactly."""
    net = made(lambda: nn.Sequential(nn.Linear(4, 4, bias=False)))
    x = examples(40, 4)
    with torch.no_grad():
        net[0].weight.mul_((gain / capalloc.scaling(net, x).total_gain) ** 0.5)
    losses = [f for f in capalloc.audit(net, x).findings if f.docs == "scaling.md"]
    assert [f.level for f in losses] == ([] if level is None else [level])
    assert [f.value for f in losses] == pytest.approx([gain] * len(losses), rel=1e-4)


def test_depth_that_loses_the_signal_is_the_most_serious() -> None:
    net = made(dense(4, *[4] * 12, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.2)
    audit = capalloc.audit(net, examples(40, 4))
    assert audit.findings[0].level == "serious"
    assert audit.findings[0].what.startswith("energy falls to")
    assert audit.findings[0].docs == "scaling.md"
    assert audit.findings[0].do == "bring each layer to gain 1, as `capalloc.balance` does at the start"
    assert not any(f.do == "nothing to do" or f.what.startswith("and ") for f in audit.findings)
    gain = capalloc.scaling(capalloc.balance(net, examples(40, 4)), examples(40, 4)).total_gain
    assert gain == pytest.approx(1, rel=0.1)  # as it says
    assert not [f for f in capalloc.audit(net, examples(40, 4), trained=True).findings if f.docs == "scaling.md"]


class Residual(nn.Module):
    """Convolutions with a block in which paths go around a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv1d(1, 4, 3), nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.branch(x))
        return self.head(x.mean(-1))


@pytest.fixture(scope="module")
def audited() -> tuple[Audit, int]:
    """An audit of a residual network, and how often its model was exported."""
    exports = mock.Mock(wraps=torch.export.export)
    with mock.patch.object(torch.export, "export", exports):
        return capalloc.audit(made(Residual), examples(40, 1, 12)), exports.call_count


def test_the_diagnosis_is_part_of_it(audited: tuple[Audit, int], tmp_path: Path) -> None:
    """It is that of `diagnose`, entry by entry, of one capture for all parts; every way out of the result has it."""
    audit, exports = audited
    alone = capalloc.diagnose(made(Residual), examples(40, 1, 12))
    assert exports == 1
    assert audit.diagnosis is not None
    xr.testing.assert_identical(audit.diagnosis.data.drop_attrs(), alone.data.drop_attrs())
    for rows in ("blocks", "places", "gates", "distances", "axes"):
        pd.testing.assert_frame_equal(audit.to_pandas(rows), alone.to_pandas(rows))
    pd.testing.assert_frame_equal(audit.to_pandas("stretches"), alone.to_pandas("layers"))
    audit.save(tmp_path / "audit.nc")
    again = capalloc.load(tmp_path / "audit.nc")
    xr.testing.assert_identical(again.data, audit.data)
    assert isinstance(again, Audit)
    assert again.diagnosis is not None
    assert again.diagnosis.summary == alone.summary
    view, values = audit.view(), as_dict(audit)
    assert values["diagnosis"]["T"] == alone.scaling.T
    assert len(values["gates"]) == alone.data.sizes["gate"]
    assert [table.title for table in view.tables][:3] == ["layers", "residual blocks", "gains of layers"]
    assert {chart.title for chart in view.charts} == {chart.title for chart in alone.view().charts}
    for shown in (audit._repr_html_(), report_html({"audit": audit})):
        assert all(word in shown for word in ("shattering index", "residual blocks", "receptive field"))
    assert "shattering index" in repr(audit)
    assert "E[a²]" not in repr(audit)  # whose tables stand apart


def test_findings_have_their_number_and_its_error(audited: tuple[Audit, int]) -> None:
    (lost,) = [f for f in findings(known([0.1, *[1.0] * 10, 8.0], ("input",))) if "little" in f.what]
    assert (lost.value, lost.error) == (pytest.approx(0.1 * 12 / 18.1), None)
    net = made(dense(4, *[4] * 12, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.2)
    audit = capalloc.audit(net, examples(40, 4))
    assert audit.diagnosis is not None
    energy = next(f for f in audit.findings if "from inputs to outputs" in f.what)
    assert energy.value == pytest.approx(audit.diagnosis.scaling.total_gain)
    gains = audit.diagnosis.scaling.data
    lowest = gains["layer"].to_numpy()[np.argsort(gains["gain"].to_numpy())[:3]]
    assert re.findall(r'"([^"]*)"', energy.what) == lowest.tolist()  # the layers that lose most
    assert len([f for f in audit.findings if f.docs == "scaling.md"]) == 1


def test_without_a_diagnosis_there_are_no_tables_of_it(audited: tuple[Audit, int]) -> None:
    data = audited[0].data
    bare = Audit(data.drop_vars([name for name in data.variables if str(name).startswith("depth_")]))
    assert bare.diagnosis is None
    assert as_dict(bare)["diagnosis"] is None
    with pytest.raises(ValueError, match="this audit has no gates"):
        bare.to_pandas("gates")
    with pytest.raises(ValueError, match=r"the dataset lacks \['depth_rate'\]"):
        Audit(data.drop_vars("depth_rate"))


class Unruled(nn.Module):
    """A model with an operator that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = shifted(self.layer(x))
        return found


def test_what_cannot_be_found_out_is_left_out_with_a_note() -> None:
    notes = capalloc.audit(made(Unruled), examples(9, 3)).data.attrs["notes"]
    assert any(note.startswith("paths and depth left out: ") for note in notes)


class Branching(nn.Module):
    """A model that looks at its values to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        if h.sum() > 0:
            h = torch.relu(h)
        return self.head(h)


def test_a_branch_on_values_is_told_in_a_line_with_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    audit = capalloc.audit(made(Branching), examples(40, 4))
    (note,) = [note for note in audit.data.attrs["notes"] if "left out" in note]
    assert "what forward does depends on values that it computes" in note
    assert re.search(r"test_audit\.py, line \d+\)$", note)
    assert capfd.readouterr() == ("", "")  # torch prints the graph that it could not export


def test_a_small_model_gets_the_exact_answer_in_any_time() -> None:
    """Few seconds are no reason for a rough map where the exact one takes less; and the forecast knows it."""
    net, x = made(dense(6, 5, 3)), examples(60, 6)
    audit = capalloc.audit(net, x, seconds=15, trained=True)
    assert audit.total == capalloc.measure(net, x).total
    assert audit.data.attrs["total_standard_error"] is None
    assert audit.forecast_seconds < 12


def test_the_forecast_is_of_the_answer_that_propagate_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact answer is taken up to half a minute, however much time there is: beyond, the blocks' time counts."""
    monkeypatch.setattr(audit_module, "exact_seconds", lambda size, in_use: 35.0)
    monkeypatch.setattr(audit_module, "forecast_seconds", lambda *given: 3.0)
    net, x = made(dense(6, 5, 3)), examples(60, 6)
    assert capalloc.audit(net, x, trained=True).forecast_seconds < 10


def test_where_a_nearer_answer_takes_too_long_there_is_a_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget is kept by the rule of total decoupling, which findings name as their assumption."""
    monkeypatch.setattr(audit_module, "exact_seconds", lambda size, in_use: math.inf)
    monkeypatch.setattr(audit_module, "LEAST_PASSES", 1e12)
    net, x = made(dense(6, 5, 3)), examples(60, 6)
    with torch.no_grad():
        net[0].weight[:, 1:] *= 1e-2
    audit = capalloc.audit(net, x, trained=True)
    assert audit.total == pytest.approx(capalloc.propagate(net, x, solver="markov").total)
    assert audit.data.attrs["notes"][0].startswith("capacity by the rule of total decoupling, a guide: ")
    assert audit.forecast_seconds < 20


def test_layers_that_hold_nothing_are_unused_or_unseen_and_not_too_wide() -> None:
    layers = pd.DataFrame(np.nan, ["query", "value"], list(Audit.COLUMNS))
    layers = layers.assign(parameters=100.0, capacity=[0.0, 20.0], use=[0.0, 0.2])
    for solver in ("markov", "block"):
        (only,) = low_use(replace(known([1.0] * 8, ("input",), solver=solver), layers=layers))
        assert only.what.startswith('layer "value": use 0.20')


def test_a_layer_that_paths_see_in_part_is_of_unknown_use() -> None:
    """Two gates of three of a recurrent layer carry nothing: what the third holds is no low use of all."""
    net = made(lambda: nn.Sequential(nn.GRU(2, 6, batch_first=True), LastState(), nn.Linear(6, 1)))
    guide, exact = (capalloc.propagate(net, examples(40, 6, 2), solver=solver) for solver in ("markov", "auto"))
    recurrent = {name for name in guide.attrs["parameter_sizes"] if "_l0" in name}
    assert guide.attrs["unseen_by_parameter"].keys() == recurrent
    layer = Evidence.of_saved(guide).layers.loc["0"]
    assert layer["capacity"] < 0.5 * layer["parameters"] < sum(exact.by_parameter.to_series()[list(recurrent)])
    assert math.isnan(layer["use"])
    assert not [*low_use(Evidence.of_saved(guide))]
    (row,) = [row for row in guide.view().tables[-1].rows if row[0] == "0.weight_hh_l0"]
    assert row[-1] == "–"


def test_what_moves_a_region_is_said_in_the_words_of_its_axes() -> None:
    net = made(lambda: nn.Sequential(nn.GRU(2, 6, batch_first=True), LastState(), nn.Linear(6, 1)))
    found = capalloc.propagate(net, examples(40, 12, 2), solver="markov")
    little = [finding for finding in findings(Evidence.of_saved(found)) if "gets little" in finding.what]
    assert [finding.do for finding in little] == ["see whether the task asks for it; a recurrence forgets"]
    assert str(found).splitlines()[3].split() == ["inputs", "step", "12,", "feature", "2"]


class LastState(nn.Module):
    """The last state of a recurrent layer."""

    def forward(self, returned: tuple[Tensor, Tensor]) -> Tensor:
        return returned[0][:, -1]


def test_what_stands_before_the_inputs_is_no_layer() -> None:
    """An embedding of token ids has scores of units, and no capacity: the table has the layers that have some."""

    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(ids)).mean(1))

    ids = torch.randint(9, (30, 5), generator=torch.Generator().manual_seed(0))
    audit = capalloc.audit(made(Ids), ids, trained=True)
    assert np.isfinite(audit.data["parameters"]).all()
    assert audit.data["layer"].to_numpy().tolist() == ["head"]


def test_what_takes_too_long_is_left_out_with_a_note() -> None:
    audit = capalloc.audit(made(dense(6, 5, 3)), examples(50, 6), seconds=1e-3)
    left_out = [note.split(" ")[0] for note in audit.data.attrs["notes"] if "s are left" in note]
    assert sorted(left_out) == ["capacity", "channels", "depth", "paths"]
    assert audit.total is None
    assert audit.view().heading == "nothing found, in a part of what there is to see"
    assert "Nothing found.</strong> Parts were left out" in report_html({"audit": audit})
    assert "capacity" not in str(audit).split("layers")[0]


def test_parts_that_take_longer_than_forecast_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine: the first part takes what there is, and what is left out says so, as does the end."""
    observed = audit_module.observe

    def slow(problem: Any, batches: Any) -> Any:
        time.sleep(4.5)
        return observed(problem, batches)

    monkeypatch.setattr(audit_module, "observe", slow)
    notes = capalloc.audit(made(dense(6, 5, 3)), examples(50, 6), seconds=3).data.attrs["notes"]
    (depth,) = [note for note in notes if note.startswith("depth left out: ")]
    assert re.search(r"0 of 3 s are left \(what came before took \d+ s, [01] were forecast\)$", depth)
    assert any(re.fullmatch(r"seconds=3 was not held: it took \d+ s", note) for note in notes)


def test_layers_beyond_those_named_are_counted() -> None:
    """Five dead layers: three are named, and the last of them says that there are two more; none is called wide."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.ModuleList(nn.Linear(6, 3) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0 * sum(layer(x[:, [0, 0, 0, 1, 1, 1]]) for layer in self.idle)

    told = [f.what for f in capalloc.audit(made(Idle), examples(60, 6), trained=True).findings]
    dead = [what for what in told if "no path goes through it" in what]
    assert len(dead) == 3
    assert [what.endswith(" (and 2 more layers with dead units: see the table)") for what in dead] == [
        False,
        False,
        True,
    ]
    assert not [what for what in told if "directions" in what]


def test_many_small_operators_are_forecast_by_their_number() -> None:
    """A recurrence of 40 steps, whose one pass takes milliseconds: the diagnosis takes seconds all the same."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    audit = capalloc.audit(made(Recurrent), examples(4, 40, 2), seconds=1.0)
    (note,) = [note for note in audit.data.attrs["notes"] if note.startswith("depth left out")]
    assert 1 < float(re.findall(r"about (\d+) s more", note)[0]) < 10


def test_inputs_that_serve_once_are_taken() -> None:
    batches = examples(60, 6).split(20)
    net = made(dense(6, 5, 3))
    assert capalloc.audit(net, iter(batches), trained=True).total == capalloc.audit(net, batches, trained=True).total


def test_order_is_by_level_and_weight() -> None:
    a, b, c = (
        Finding(level, weight, "", "", "") for level, weight in (("to know", 1), ("serious", 0.1), ("serious", 0.2))
    )
    assert by_weight([a, b, c]) == [c, b, a]


def test_the_model_is_left_alone() -> None:
    net = made(dense(6, 5, 3)).train()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    capalloc.audit(net, examples(30, 6), trained=True)
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


def test_on_the_command_line(tmp_path: Path) -> None:
    small = ("--arg", "width=3", "--arg", "hidden=[4]", "--arg", "num_classes=2")
    run = ["audit", "lenet", "--shape", "1,12,12", *small, "--examples", "6"]
    done = CliRunner().invoke(app, [*run, "--out", str(tmp_path / "audit.nc")])
    assert done.exit_code == 0, done.output
    assert "directions read" in done.output
    audit = capalloc.load(tmp_path / "audit.nc")
    assert isinstance(audit, Audit)
    told = json.loads(CliRunner().invoke(app, [*run, "--json", "--quiet"]).output)
    assert [f["what"] for f in told["findings"]] == [f.what for f in audit.findings]


def test_what_is_refused() -> None:
    net, x = made(dense(6, 5, 3)), examples(30, 6)
    with pytest.raises(ValueError, match="seconds must be a positive number"):
        capalloc.audit(net, x, seconds=0)
    data = capalloc.audit(net, x, trained=True).data
    with pytest.raises(ValueError, match="a finding needs"):
        Audit(data.assign_attrs(found=[{"level": "bad"}]))


class Both(nn.Module):
    """Two inputs, which `Joined` takes side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x) + self.b(y)))


class Joined(nn.Module):
    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.both = both

    def forward(self, z: Tensor) -> Tensor:
        return self.both(z[:, :3], z[:, 3:])


@pytest.mark.parametrize("once", [False, True])
def test_several_inputs_are_those_that_stand_side_by_side(once: bool) -> None:
    both, z = made(Both), examples(30, 5)
    given = (z[:, :3], z[:, 3:])
    several = capalloc.audit(both, iter([given]) if once else given, seconds=60)
    joined = capalloc.audit(Joined(both), z, seconds=60)
    assert several.data.attrs["total"] == pytest.approx(joined.data.attrs["total"])
    np.testing.assert_allclose(several.data["use"], joined.data["use"])
    assert not any("left out" in note for note in several.data.attrs["notes"])


def test_a_place_of_several_inputs_is_named_by_its_input() -> None:
    evidence = known([1.0, 1.0, 1.0, 1.0, 1e-3], ("input",))
    names = {"input_name": ("input", [*"xxxyy"]), "place": ("input", [*"01201"])}
    assert evidence.allocation is not None
    places = evidence.allocation.capacity.assign_coords(names)
    evidence = replace(evidence, allocation=evidence.allocation.replace(capacity=places))
    assert any(f.what.startswith("y at 1 gets little") for f in findings(evidence))

"""Capacity during training: what the event files hold, and that the training is the same to the bit without."""

from __future__ import annotations

import csv
import importlib
import io
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import capalloc
from allocations import allocation
from capalloc import Allocation, CapacityWarning
from capalloc._model.private_copy import unwrapped
from capalloc.app.callbacks.snapshot import LOGGED_METHODS, Snapshot, check_inputs
from capalloc.app.callbacks.summary import LONG, SHORT, map_image, summarise
from lacking import lack
from several import Gated
from zoo import gaussian, seeded_module

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
)
pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from capalloc.app.callbacks.lightning_callback import CapacityCallback  # noqa: E402
from capalloc.app.callbacks.tensorboard_logger import CapacityLogger, is_first  # noqa: E402


def network() -> nn.Module:
    """Batch norm and dropout, in training mode: a pass over the model itself would leave a trace."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 16, 2)]
    return nn.Sequential(*layers)


def drawing(model: nn.Module, inputs: torch.Tensor) -> Allocation:
    """A method that draws random numbers of its own."""
    torch.rand(3)
    return capalloc.propagate(model, inputs, solver="markov")


IMAGES = gaussian(8, 1, 6, 6).float()
LAYERS = {"0", "1", "5"}


def events(folder) -> event_accumulator.EventAccumulator:
    found = event_accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    return found.Reload()


def scalars(found: event_accumulator.EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in found.Scalars(tag)}


# -- what is logged ---------------------------------------------------------------------------------------------


def test_event_files_hold_what_the_method_finds(tmp_path):
    model = network()
    with CapacityLogger(tmp_path, IMAGES) as logger:
        found = logger.log(model, 7)["capacity"]
    expected = capalloc.propagate(model, IMAGES, solver="markov", table=False)
    xr.testing.assert_identical(found.capacity, expected.capacity)
    board = events(tmp_path)
    layers = expected.view().series["layers"]
    assert set(layers) == LAYERS
    wanted = {"total": expected.total, "bias": expected.bias, "largest": float(expected.capacity.max())}
    wanted = {f"capacity/{name}": value for name, value in wanted.items()}
    wanted |= {f"capacity_layers/{name}": value for name, value in layers.items()}
    assert set(board.Tags()["scalars"]) == set(wanted)
    for tag, value in wanted.items():
        assert scalars(board, tag) == {7: np.float32(value)}
    (image,) = board.Images("capacity/map")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (132, 132, 3)  # 6 x 6 inputs, 22 x 22 pixels each
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), map_image(expected.capacity))
    assert image.step == 7
    (histogram,) = board.Histograms("capacity/inputs")
    assert histogram.histogram_value.num == 36
    assert histogram.histogram_value.sum == pytest.approx(expected.total - expected.bias)


def test_layers_sum_to_the_total():
    a = allocation()
    layers = a.view().series["layers"]
    assert set(layers) == {"conv", "linear"}
    assert sum(layers.values()) == pytest.approx(a.total)
    root = xr.DataArray([2.0], dims="parameter", coords={"parameter": ["weight"]})
    assert Allocation(xr.DataArray([2.0], dims="input"), 0.0, root).view().series == {"layers": {"weight": 2.0}}


def test_the_brightest_pixel_is_the_largest_value():
    values = xr.DataArray(np.zeros((2, 3, 4)), dims=("channel", "row", "column"))
    values[:, 1, 2] = 1.0
    pixels = map_image(values)
    assert pixels.shape == (3, 96, 128)
    brightest = pixels.sum(0)
    assert (brightest == brightest.max()).nonzero()[0].min() == 32
    assert (brightest[32:64, 64:96] == brightest.max()).all()
    assert brightest[32:64, 64:96].size == (brightest == brightest.max()).sum()


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((5,), (26, 130)),
        ((400,), (SHORT, 400)),
        ((2, 300), (SHORT, 300)),
        ((1, 1), (LONG, LONG)),
        ((300, 1), (300, SHORT)),
    ],
)
def test_pictures_can_be_seen(shape, pixels):
    assert map_image(xr.DataArray(np.ones(shape))).shape == (3, *pixels)


def test_standard_errors_are_logged_where_there_are_any():
    summary = summarise(allocation(total_standard_error=1.5, bias_standard_error=0.5), "capacity")
    assert summary.scalars["capacity/total_standard_error"] == 1.5
    assert summary.scalars["capacity/bias_standard_error"] == 0.5
    assert "capacity/total_standard_error" not in summarise(allocation(), "capacity").scalars


def test_every_method_has_its_tags(tmp_path):
    model = seeded_module(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    x = gaussian(30, 4)
    with CapacityLogger(tmp_path, x, method={name: name for name in LOGGED_METHODS}) as logger:
        results = logger.log(model, 0)
    assert list(results) == list(LOGGED_METHODS)
    board = events(tmp_path)
    tags = set(board.Tags()["scalars"])
    expected = {
        *(f"{group}/{name}" for group in ("propagate", "measure") for name in ("total", "bias", "largest")),
        *(f"{group}_layers/{layer}" for group in ("propagate", "measure") for layer in "02"),
        "decoupling_layers/1",
        *("scaling/total_gain", "scaling_gains/0", "scaling_gains/2"),
        *("shattering/index", "shattering/correlation", "shattering/kept"),
    }
    assert tags == expected
    assert scalars(board, "decoupling_layers/1")[0] == pytest.approx(float(results["decoupling"]["1"]["decoupling"]))
    assert scalars(board, "shattering/index")[0] == pytest.approx(results["shattering"].index)


def test_the_total_change_of_a_residual_network():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.block(x).relu()

    found = capalloc.scaling(seeded_module(Residual), gaussian(5, 4))
    (block,) = found.data["block"].to_numpy()
    tags = summarise(found, "scaling").scalars
    assert tags == {
        "scaling/T": found.T,
        "scaling/skip_share": found.skip_share,
        "scaling/total_gain": found.total_gain,
        f"scaling_rates/{block}": float(found.data["rate"][0]),
    }


def test_values_that_are_no_numbers_are_left_out():
    model = seeded_module(lambda: nn.Sequential(nn.Linear(2, 1), nn.ReLU()))
    found = capalloc.decoupling(model, gaussian(5, 2))
    assert np.isnan(found.data["decoupling"]).all()  # one unit has no pair
    assert summarise(found, "decoupling").scalars == {}


def test_a_method_may_be_a_function(tmp_path):
    method = partial(capalloc.propagate, outputs=lambda y: y[:, :1], solver="markov")
    model = network()
    with CapacityLogger(tmp_path, IMAGES, method=method) as logger:
        found = logger.log(model, 0)["capacity"]
    assert found.total == method(model, IMAGES).total < capalloc.propagate(model, IMAGES, solver="markov").total


# -- when, and by whom ------------------------------------------------------------------------------------------


def train(steps: int, logger: CapacityLogger | None = None, **settings) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A plain loop, from its own seed."""
    torch.manual_seed(3)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(torch.randn(64, 1, 6, 6), torch.randn(64, 2)), batch_size=8, shuffle=True)
    handle = None if logger is None else logger.attach(model, optimizer, **settings)
    done = 0
    while done < steps:
        for x, y in loader:
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    if handle is not None:
        handle.remove()
    return model, optimizer


def test_a_plain_training_is_the_same_to_the_bit(tmp_path):
    with torch.random.fork_rng():
        plain, plain_optimizer = train(11)
        plain_state = torch.get_rng_state()
        with CapacityLogger(tmp_path, IMAGES, every=4, method={"capacity": "propagate", "drawing": drawing}) as logger:
            logged, logged_optimizer = train(11, logger)
        assert torch.equal(torch.get_rng_state(), plain_state)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, logged.state_dict()[name]), name
    for a, b in zip(plain.parameters(), logged.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        assert torch.equal(plain_optimizer.state[a]["momentum_buffer"], logged_optimizer.state[b]["momentum_buffer"])
    assert [m.training for m in logged.modules()] == [True] * 7
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in logged.modules())
    assert not logged_optimizer._optimizer_step_post_hooks
    assert sorted(scalars(events(tmp_path), "capacity/total")) == [0, 4, 8]


def test_steps_count_on_from_a_start_and_stop_with_the_handle(tmp_path):
    with torch.random.fork_rng(), CapacityLogger(tmp_path, IMAGES, every=3) as logger:
        model, optimizer = train(4, logger, step=100)
        optimizer.step()
        with logger.attach(model, optimizer, step=200):
            for _ in range(2):
                optimizer.step()
        for _ in range(3):
            optimizer.step()
    assert sorted(scalars(events(tmp_path), "capacity/total")) == [100, 102, 200, 201]


def test_a_writer_of_ones_own_stays_open(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    with CapacityLogger(writer, IMAGES) as logger:
        logger.log(network(), 0)
    writer.add_scalar("loss", 0.5, 0)
    writer.close()
    assert {"loss", "capacity/total"} <= set(events(tmp_path).Tags()["scalars"])


@pytest.mark.parametrize(
    ("context", "method"),
    [
        (torch.no_grad, "propagate"),
        (torch.inference_mode, "propagate"),
        (partial(torch.autocast, "cpu", torch.bfloat16), "propagate"),
        (torch.inference_mode, partial(capalloc.measure, ridge=1e-3)),
    ],
    ids=["no_grad", "inference_mode", "autocast", "inference_mode, measured"],
)
def test_what_surrounds_the_log_changes_nothing(tmp_path, context, method):
    model = network()
    with CapacityLogger(tmp_path, IMAGES, method=method) as logger:
        plain = logger.log(model, 0)["capacity"]
        with context():
            inside = logger.log(model, 1)["capacity"]
            assert torch.is_grad_enabled() == (context not in (torch.no_grad, torch.inference_mode))
    xr.testing.assert_equal(inside.capacity.drop_attrs(), plain.capacity.drop_attrs())


def test_wrapped_models_are_unwrapped(tmp_path):
    model = network()
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model
    with CapacityLogger(tmp_path, IMAGES) as logger:
        found = logger.log(torch.compile(nn.DataParallel(model)), 0)["capacity"]
    assert found.to_pandas("params").index[0] == "0.weight"


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    assert is_first()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not is_first()
    with CapacityLogger(tmp_path / "board", IMAGES) as logger:
        assert logger.log(network(), 0) == {}
    assert not (tmp_path / "board").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert is_first()


def test_inputs_are_kept_as_they_were(tmp_path):
    images = IMAGES.clone()
    with CapacityLogger(tmp_path, images) as logger:
        images.zero_()
        assert logger.log(network(), 0)["capacity"].total > 0
        assert torch.equal(logger.inputs, IMAGES)
    CapacityLogger(tmp_path, [IMAGES[:4], (IMAGES[4:], torch.zeros(4))])


# -- refusals ---------------------------------------------------------------------------------------------------


def test_errors_name_the_step(tmp_path):
    model = network()
    with torch.no_grad():
        model[0].weight[0] = np.nan
    with CapacityLogger(tmp_path, IMAGES) as logger:
        with pytest.raises(
            RuntimeError, match=r"capacity cannot be logged at step 41: ValueError: .*NaN.*on_error='warn'"
        ):
            logger.log(model, 41)
        with pytest.raises(
            RuntimeError, match=r"step 0: .*must return a result, such as an Allocation, got float for 'x'"
        ):
            CapacityLogger(tmp_path, IMAGES, method={"x": lambda model, x: 1.0}).log(model, 0)
    with (
        CapacityLogger(tmp_path, IMAGES, on_error="warn") as logger,
        pytest.warns(CapacityWarning, match="capacity cannot be logged at step 42"),
    ):
        assert logger.log(model, 42) == {}


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"every": 0}, ValueError, "every must be a positive integer, got 0"),
        ({"every": True}, ValueError, "every must be a positive integer, got True"),
        ({"method": "guess"}, ValueError, r"method must be one of \('propagate', .*got 'guess'"),
        ({"method": 3}, TypeError, "method must be a name, a function or a mapping to these, got int"),
        ({"on_error": "stop"}, ValueError, "on_error must be 'raise' or 'warn', got 'stop'"),
        ({"inputs": []}, TypeError, "inputs must be a tensor of examples or a list of batches"),
        ({"inputs": DataLoader(TensorDataset(IMAGES))}, TypeError, r"got DataLoader; .*next\(iter\(loader\)\)\[0\]"),
    ],
)
def test_bad_settings(tmp_path, settings, error, match):
    with pytest.raises(error, match=match):
        CapacityLogger(tmp_path, **{"inputs": IMAGES, **settings})
    if "every" not in settings:
        with pytest.raises(error, match=match):
            CapacityCallback(**{"inputs": IMAGES, **settings})


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_steps", "num_examples"])
def test_bad_settings_of_the_callback(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got -1"):
        CapacityCallback(**{name: -1})


def test_missing_tensorboard_is_said_at_once(tmp_path, monkeypatch):
    lack(monkeypatch, "tensorboard", unload="torch.utils.tensorboard")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'capalloc\[tensorboard\]'"):
        CapacityLogger(tmp_path, IMAGES)


def test_missing_lightning_is_said_on_import(monkeypatch):
    lack(monkeypatch, "lightning", "pytorch_lightning", unload="capalloc.app.callbacks.lightning_callback")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'capalloc\[lightning\]'"):
        importlib.import_module("capalloc.app.callbacks.lightning_callback")


# -- Lightning --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request):
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


def fit(pl, folder, *callbacks, loggers=("TensorBoardLogger",), batch=lambda x, y: (x, y), **settings):
    """Two epochs of 4 steps; the module and the trainer."""

    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, given, index):
            return (self(given[0]) - given[1]).square().mean()

        def validation_step(self, given, index):
            self.log("val", 0.0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    kinds = importlib.import_module(f"{pl.__name__}.loggers")
    torch.manual_seed(5)
    data = TensorDataset(torch.randn(32, 1, 6, 6), torch.randn(32, 2))
    lit = Lit()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        logger=[getattr(kinds, name)(str(folder), name=None, version=name) for name in loggers],
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )
    validation = DataLoader(
        data, batch_size=8, collate_fn=lambda items: batch(*map(torch.stack, zip(*items, strict=True)))
    )
    trainer.fit(lit, DataLoader(data, batch_size=8, shuffle=True), validation)
    return lit, trainer


pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|is smaller than the logging interval).*")


def test_a_training_by_lightning_is_the_same_to_the_bit(pl, tmp_path):
    with torch.random.fork_rng():
        plain, _ = fit(pl, tmp_path / "plain")
        state = torch.get_rng_state()
        callback = CapacityCallback(every_n_epochs=1, every_n_steps=3)
        logged, trainer = fit(pl, tmp_path / "logged", callback)
        assert torch.equal(torch.get_rng_state(), state)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, logged.state_dict()[name]), name
    assert callback.inputs.shape == (8, 1, 6, 6)
    assert not callback.inputs.is_inference()
    board = events(tmp_path / "logged" / "TensorBoardLogger")
    totals = scalars(board, "capacity/total")
    assert sorted(totals) == [0, 3, 4, 6, 8]
    assert totals[8] == np.float32(capalloc.propagate(logged, callback.inputs, solver="markov").total)
    assert "capacity_layers/net.0" in board.Tags()["scalars"]
    assert [image.step for image in board.Images("capacity/map")] == [0, 3, 4, 6, 8]
    pixels = np.asarray(Image.open(io.BytesIO(board.Images("capacity/map")[-1].encoded_image_string)))
    np.testing.assert_array_equal(
        pixels.transpose(2, 0, 1), map_image(capalloc.propagate(logged, callback.inputs, solver="markov").capacity)
    )
    assert trainer.global_step == 8


def test_other_loggers_get_the_scalars(tmp_path):
    pl = importlib.import_module("lightning.pytorch")
    callback = CapacityCallback(
        IMAGES, module=lambda lit: lit.net, method={"capacity": "propagate", "scaling": "scaling"}
    )
    with torch.random.fork_rng():
        fit(pl, tmp_path, callback, loggers=("CSVLogger", "TensorBoardLogger"))
    with open(tmp_path / "CSVLogger" / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["capacity/total"]]
    board = events(tmp_path / "TensorBoardLogger")
    totals = scalars(board, "capacity/total")
    assert {int(row["step"]): np.float32(row["capacity/total"]) for row in rows} == totals
    assert sorted(totals) == [0, 4, 8]
    assert "capacity_layers/0" in board.Tags()["scalars"]
    assert any(tag.startswith("scaling") for tag in board.Tags()["scalars"])


def test_errors_of_the_callback_name_the_step(tmp_path):
    pl = importlib.import_module("lightning.pytorch")

    def fails(model, inputs):
        raise ValueError("no path")

    with torch.random.fork_rng():
        with pytest.raises(RuntimeError, match="capacity cannot be logged at step 0: ValueError: no path"):
            fit(pl, tmp_path / "raise", CapacityCallback(IMAGES, method=fails))
        with pytest.warns(CapacityWarning, match="capacity cannot be logged at step 8: ValueError: no path"):
            fit(pl, tmp_path / "warn", CapacityCallback(IMAGES, method=fails, on_error="warn"))


def test_a_training_without_validation_says_that_nothing_is_logged(tmp_path):
    pl = importlib.import_module("lightning.pytorch")
    with (
        torch.random.fork_rng(),
        pytest.warns(CapacityWarning, match="no validation batch was seen, .* give .* inputs="),
    ):
        fit(pl, tmp_path, CapacityCallback(), limit_val_batches=0)


def test_several_inputs_have_pictures_of_their_own(tmp_path):
    inputs = {"x": torch.ones(4, 3).double(), "y": torch.ones(4, 2, 2).double()}
    taken = Snapshot.of("propagate", "raise")(seeded_module(Gated), check_inputs(inputs), 0)
    ((_, summary),) = taken.values()
    assert {"capacity/map_x", "capacity/map_y"} == set(summary.images)
    assert {"capacity/largest_x", "capacity/inputs_y"} <= {*summary.scalars, *summary.histograms}


def test_batches_that_are_no_pairs_need_inputs(tmp_path):
    pl = importlib.import_module("lightning.pytorch")
    with (
        torch.random.fork_rng(),
        pytest.raises(TypeError, match="cannot tell the inputs of a validation batch; give inputs="),
    ):
        fit(pl, tmp_path, CapacityCallback(), batch=lambda x, y: {"x": x})


def test_other_ranks_do_nothing(tmp_path):
    class Trainer:
        is_global_zero, global_step, loggers = False, 0, ()

    callback = CapacityCallback()
    callback.on_validation_batch_start(Trainer(), None, IMAGES, 0)
    callback.on_train_start(Trainer(), None)
    callback.on_train_end(Trainer(), None)
    assert callback.inputs is None

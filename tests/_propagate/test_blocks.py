"""Blocks and steps: the oracle is the projector on all constraints, by brute force, and `capalloc.measure`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from capalloc._derivatives import exact_derivatives
from capalloc._derivatives.tape import ELEMENTARY
from capalloc._linalg.inverse_root import InverseRoot
from capalloc._linalg.kronecker import LONGEST, Kronecker, KroneckerBlock
from capalloc._linalg.saturation import BlockMoments
from capalloc._measure import precondition
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import Examples, cost_of, plan_examples
from capalloc._measure.forecast import pass_seconds
from capalloc._measure.precondition import Sample, constant_rows, inverse_root, samples, samples_of_outputs, spread
from capalloc._measure.refine import ProbeReading, Refinement, blocks_alone, readings, refine
from capalloc._measure.task import make_task
from capalloc._measure.work_plan import Size
from capalloc._model.problem import prepare
from capalloc._operators.decompositions import RECURRENT
from capalloc._propagate.by_constraints import capped, is_small, numbers_in_use, plan_combinations
from capalloc._propagate.effort import (
    Effort,
    Enough,
    affordable,
    fewer_outputs,
    forecast_seconds,
    has_many_constraints,
    in_memory,
    in_time,
    missing,
    probes_for,
    readings_at,
)
from capalloc._runtime.memory import Budget
from capalloc._runtime.steps import Steps
from capalloc.solvers import Block
from zoo import dense, gaussian, reference_weights, seeded_module

SIZES = [6, 4]


@dataclass(frozen=True)
class SimpleExamples:
    """Numbers of examples, in their place."""

    rows_per_example: int
    num_slots: int
    num_params: int
    num_examples: int
    output_probes: int | None = None
    ready: tuple[Any, ...] = ()

    @property
    def num_constrained(self) -> int:
        return self.rows_per_example // self.num_slots

    @property
    def num_rows(self) -> int:
        return self.num_examples * self.rows_per_example


@dataclass
class MatrixSums:
    """Products with a matrix, (rows of a slot, slots, params), in the place of those with a network's constraints."""

    C: Tensor

    @property
    def examples(self) -> Any:
        rows, slots = self.C.shape[:2]

        def by_example(found: Tensor) -> Tensor:
            return found.view(len(found), rows, 1, slots)

        return SimpleNamespace(sizes=SIZES, x=torch.ones(1).double(), num_outputs=rows, by_example=by_example)

    def rows(self, w: Tensor) -> Tensor:
        return torch.einsum("rsp,kp->krs", self.C, w)

    def noise(self, number: int, count: int, precision: torch.dtype = torch.float64) -> Tensor:
        return gaussian(count, self.C.shape[0] * self.C.shape[1], seed=number) @ self.C.flatten(0, 1)

    def push(self, w: Tensor) -> Tensor:
        return self.rows(w).flatten(1)

    def gram(self, w: Tensor) -> Tensor:
        flat = self.C.flatten(0, 1)
        return w @ flat.T @ flat

    def read(self, w: Tensor) -> tuple[Tensor, BlockMoments]:
        rows = self.rows(w)
        return rows.square().sum(1), BlockMoments.of(rows[:, :, None], len(self.C))


@pytest.fixture
def sums() -> MatrixSums:
    """Nine slots of seven rows, of rank 8 in 10 parameters."""
    return MatrixSums((gaussian(63, 8) @ gaussian(8, 10, seed=2)).reshape(7, 9, 10))


@pytest.fixture
def root() -> InverseRoot:
    """Some basis for the first tensor, a matrix, and variances alone for the second."""
    bases = tuple(torch.linalg.qr(gaussian(n, n, seed=n))[0] for n in (2, 3))
    first = KroneckerBlock((2, 3), bases, gaussian(2, 3, seed=4).square() + 0.1)
    return InverseRoot(Kronecker((first, KroneckerBlock((4,), (None,), gaussian(4, seed=5).square() + 0.1))))


def matrix_of(blocks: Kronecker) -> torch.Tensor:
    """The matrix that the blocks approximate."""
    first, second = blocks.blocks
    basis = torch.kron(*first.bases)
    return torch.block_diag(basis @ torch.diag(first.diagonal.flatten()) @ basis.T, torch.diag(second.diagonal))


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_root_is_one_of_the_inverse_of_blocks_and_ridge(root, ridge):
    eye, root = torch.eye(10, dtype=torch.float64), replace(root, ridge=ridge)
    R = root.push(eye).T
    torch.testing.assert_close(root.pull(eye), R)  # rows of R' are columns of R
    torch.testing.assert_close(R @ R.T, torch.linalg.inv(matrix_of(root.blocks) + ridge * eye))
    torch.testing.assert_close(root.square(eye), R @ R.T)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.proves("4", "rows beside the blocks", oracle="the inverse of the sum")
def test_rows_beside_the_blocks_are_as_if_added_to_their_matrix(root, ridge):
    rows, eye = gaussian(3, 10, seed=8), torch.eye(10, dtype=torch.float64)
    both = replace(root, ridge=ridge).with_rows(rows)
    R = both.push(eye).T
    torch.testing.assert_close(both.pull(eye), R)
    torch.testing.assert_close(R @ R.T, torch.linalg.inv(matrix_of(root.blocks) + rows.T @ rows + ridge * eye))


@pytest.mark.parametrize("count", [64, 4])
def test_rows_of_the_constant_are_its_constraints_of_combinations_of_outputs(count):
    model, x = (
        seeded_module(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))).double(),
        gaussian(5, 3),
    )
    with exact_derivatives():
        task = make_task(model, x)
        examples, _ = plan_examples(task, Block(num_probes=2))
        found = torch.cat([*constant_rows(examples, count)])
        zero = torch.zeros(1, 1, 5, 4).double()
        zero[..., -1] = 1
        apart = torch.stack(
            [
                examples.operator.at(x, u.expand(1, 5, 3), lambda: examples.replay(0)).each(zero)[0]
                for u in torch.eye(3).double()
            ]
        )
    if count == 64:  # all of them
        assert len(found) == 15
        torch.testing.assert_close(found.T @ found / 15, apart.flatten(0, 1).T @ apart.flatten(0, 1) / 5)
        return
    assert len(found) == 4
    for row, place in zip(found, spread(examples, 4), strict=True):
        of_outputs = apart[:, place]  # (outputs, params)
        units = torch.linalg.lstsq(of_outputs.T, row).solution
        torch.testing.assert_close(units.norm(), torch.tensor(3.0).double().sqrt())
        torch.testing.assert_close(units @ of_outputs, row)


def test_a_direction_without_variance_is_left_out():
    block = KroneckerBlock((3,), (None,), torch.tensor([4.0, 0.0, 1e-12]))
    torch.testing.assert_close(InverseRoot(Kronecker((block,))).push(torch.ones(1, 3)), torch.tensor([[0.5, 0, 0]]))


@pytest.mark.proves("4", "steps end at the measured capacity", oracle="the projector on all constraints")
def test_steps_end_at_the_leverage_of_every_slot(sums, root):
    flat = sums.C.flatten(0, 1)
    leverage = (flat @ torch.linalg.pinv(flat)).diagonal().view(7, 9).sum(0)
    frame = 10**0.5 * torch.linalg.qr(gaussian(10, 10, seed=6))[0]  # its mean is a trace
    (last,) = readings(sums, root, frame, (8,))
    torch.testing.assert_close(last.slots.mean(0), leverage, rtol=1e-8, atol=1e-8)
    assert last.least_total == pytest.approx(8)  # the rank


@pytest.mark.proves("4", "no step is the blocks' answer", oracle="C R R' C' by brute force")
def test_no_step_is_the_answer_of_the_blocks(sums, root):
    R = root.push(torch.eye(10, dtype=torch.float64)).T
    signs = ((torch.arange(1024)[:, None] >> torch.arange(10)) % 2 * 2.0 - 1).double()  # all of them
    expected = (sums.C @ R).square().sum((0, 2))
    (only,) = readings(sums, root, signs, (0,))
    torch.testing.assert_close(only.slots.mean(0), expected)
    for together in (False, True):
        found = blocks_alone(sums, root, signs.clone().split(100), together)
        torch.testing.assert_close(found.last.slots, only.slots)
        torch.testing.assert_close(found.last.held(8.0), only.held(8.0))
        assert found.last.tensors.shape == (2, 2)


def test_slots_and_tensors_hold_the_same_and_the_total_grows_to_the_rank(sums, root):
    found = [*readings(sums, root, gaussian(5, 10, seed=7).sign(), range(9))]
    for reading in found:
        torch.testing.assert_close(reading.slots.sum(1), reading.tensors.sum(1))
    totals = [reading.least_total for reading in found]
    assert totals == sorted(totals)
    assert totals[-1] <= 10


def test_steps_beyond_the_answer_change_nothing(sums, root):
    solved, last = readings(sums, root, gaussian(5, 10, seed=7), (10, 200))
    torch.testing.assert_close(last.slots, solved.slots, rtol=1e-7, atol=1e-7)


def test_half_the_steps_are_kept(sums, root):
    found = refine(sums, root, gaussian(3, 10), (2, 3, 4, 5, 6), lambda found: found.last.steps == 5)
    assert (found.last.steps, found.half.steps, int(found.unused.sum())) == (5, 2, 0)


def test_the_last_step_that_there_is_time_for_is_read_as_one_that_was_asked_for(sums, root):
    z = gaussian(3, 10)
    hasty = refine(sums, root, z, (2, 4, 8), lambda _: False, lambda steps, _: steps == 3).readings
    assert [reading.steps for reading in hasty] == [2, 3]
    torch.testing.assert_close(hasty[-1].slots, refine(sums, root, z, (3,), lambda _: False).last.slots)


@pytest.mark.parametrize(
    ("asked", "most", "at"), [(5, 5, (2, 5)), ("auto", 16, (2, 4, 8, 16)), ("auto", 2, (2,)), (1, 1, (0, 1))]
)
def test_readings_after_half_of_the_steps(asked, most, at):
    assert readings_at(Block(num_steps=asked), most) == at


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(3, 9), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Last(nn.Module):
    """A recurrent network's last state."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return h


class Branching(nn.Module):
    """A model that no graph holds: it asks a value which way to go."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h if float(self.a.weight.sum()) < 1e3 else h * h)


NETWORKS = {
    "attention": (Attention, (40, 4, 3)),
    "recurrent": (Last, (40, 4, 3)),
    "dense": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (60, 6)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv1d(4, 3, 3), nn.Flatten(), nn.Linear(18, 3)
        ),
        (60, 1, 10),
    ),
}


def shares(found: capalloc.Allocation) -> np.ndarray:
    return np.append(found.capacity.to_numpy().ravel(), found.bias) / found.total


@pytest.mark.proves("4", "blocks and steps", oracle="measured capacity")
@pytest.mark.parametrize("name", NETWORKS)
def test_total_is_the_rank_and_the_map_is_as_near_as_it_says(name):
    build, shape = NETWORKS[name]
    model, x = seeded_module(lambda: build()), gaussian(*shape)
    measured = capalloc.measure(model, x)
    found = capalloc.propagate(model, x, solver=Block(max_seconds=None))
    assert found.total == pytest.approx(measured.total)  # the rank
    assert found.attrs["total_exact"]
    assert capalloc.total_variation(found, measured) < found.attrs["missing"] + found.attrs["noise"]
    assert found.attrs["missing"] < 0.05
    assert float(found.by_parameter.min()) >= 0
    assert float(found.by_parameter.sum()) == pytest.approx(found.total)


def test_small_networks_get_the_exact_answer_by_default():
    build, shape = NETWORKS["dense"]
    model, x = seeded_module(lambda: build()), gaussian(*shape)
    found, measured = capalloc.propagate(model, x), capalloc.measure(model, x)
    np.testing.assert_array_equal(found.capacity, measured.capacity)
    assert (found.attrs["kind"], found.attrs["solver"]) == ("measured", "dense")


@pytest.mark.parametrize(
    ("examples", "params", "small"),
    [(270, 1000, True), (290, 1000, False), (60, 2000, True), (65, 2000, False), (14, 3000, True), (4, 3800, False)],
)
def test_the_exact_answer_is_for_what_takes_half_a_minute(examples, params, small):
    assert is_small(Size(examples, 10, 100, params), params) is small


@pytest.mark.parametrize(("steps", "often"), [(4, False), (160, True)])
def test_long_recurrences_are_for_the_blocks(steps, often):
    model = seeded_module(lambda: nn.LSTM(2, 14, batch_first=True))
    task = make_task(model, gaussian(20, steps, 2), lambda returned: returned[0][:, -1])
    assert is_small(task.size, task.size.params)
    assert is_small(task.size, numbers_in_use(task.problem)) is not often


def test_time_is_forecast_from_that_of_a_pass_and_no_longer_than_there_is():
    """Rows of blocks, and four steps and a reading of every probe; where gates stay a product is a third as long."""
    x, net = gaussian(40, 6), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    moving, size = prepare(net, x), Size(40, 3, 7, 83)
    still = prepare(nn.Sequential(net[0], nn.ReLU(), net[2]), x)
    rows, step = 2 * 32 * 8 + 1024, 40 * 3
    whole = 1e-3 * (8 * rows + probes_for(size) * 4.5 * 5 * step)
    assert forecast_seconds(moving, size, 1e-3, math.inf) == pytest.approx(whole, rel=0.05)
    lighter = 1e-3 * (2 * rows + probes_for(size) * 4.5 * 1.2 * step)
    assert forecast_seconds(still, size, 1e-3, math.inf) == pytest.approx(lighter, rel=0.05)
    assert forecast_seconds(moving, size, 1e-3, 40.0) == 40.0
    assert forecast_seconds(moving, size, 1e-3, 9.0) == pytest.approx(0.85 * 9)  # no step
    assert forecast_seconds(moving, size, 1e-3, 1e-3) > 3  # the blocks at least


def test_a_recurrent_layer_is_timed_step_by_step(monkeypatch):
    """The work runs its steps one by one, where the model has one fused operation."""
    runs: list[int] = []
    cell = RECURRENT["lstm"]
    monkeypatch.setitem(RECURRENT, "lstm", lambda *args: (runs.append(1), cell(*args))[1])
    monkeypatch.setitem(ELEMENTARY, torch.lstm, lambda *args: RECURRENT["lstm"](*args))
    model = seeded_module(lambda: nn.LSTM(2, 3, batch_first=True))
    problem = prepare(model, gaussian(5, 4, 2), lambda returned: returned[0][:, -1])
    seconds, outputs = pass_seconds(problem)
    assert seconds > 0
    assert (len(runs), outputs) == (3, 3)


def test_the_constant_has_as_many_rows_as_there_is_time_for(monkeypatch):
    task = make_task(dense(reference_weights()), gaussian(40, 3), None)
    examples, _ = plan_examples(task, Block(num_probes=4))
    full = inverse_root(examples, Sample(8, 2, 2048, 64)).beside.share
    now = iter((0.0, 1.0))
    monkeypatch.setattr(precondition.time, "perf_counter", lambda: next(now))
    few = inverse_root(examples, Sample(8, 2, 2048, 64), left=2.0).beside.share  # a second for 32 rows, .25 s left
    assert few == pytest.approx(full * 8 / 64)


def test_fewer_constraints_than_parameters_are_for_the_blocks():
    assert not is_small(Size(1, 1, 99, 100), 100)


@pytest.mark.parametrize("arguments", [{"gates": "gaussian"}, {"layers": True}, {"table": True}])
def test_what_paths_alone_tell_brings_the_markov_rule(arguments):
    model, x = dense(reference_weights()), gaussian(40, 3)
    found = capalloc.propagate(model, x, **arguments)
    assert found.attrs["solver"] == "markov"
    assert "assumes total decoupling" in found.attrs["notes"][0]
    with pytest.raises(ValueError, match="are not for solver='block'; use solver='markov'"):
        capalloc.propagate(model, x, solver="block", **arguments)


def test_a_model_without_a_graph_has_an_answer():
    model, x = seeded_module(Branching), gaussian(30, 4)
    measured, found = (
        capalloc.measure(model, x),
        capalloc.propagate(model, x, solver=Block(num_steps=12, max_seconds=None)),
    )
    assert found.total == pytest.approx(measured.total)
    assert capalloc.total_variation(found, measured) < 0.05


def test_the_scale_of_a_whole_layer_does_not_show():
    model, x = seeded_module(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))), gaussian(40, 6)
    before = capalloc.propagate(model, x, solver=Block(max_seconds=None))
    with torch.no_grad():
        model[0].weight.mul_(8)
        model[0].bias.mul_(8)
        model[2].weight.div_(8)
    after = capalloc.propagate(model, x, solver=Block(max_seconds=None))
    np.testing.assert_allclose(after.capacity, before.capacity, rtol=1e-9)
    np.testing.assert_allclose(after.by_parameter, before.by_parameter, rtol=1e-9)


def test_probes_repeat_and_their_error_falls():
    model, x = seeded_module(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))), gaussian(16, 4)
    state = torch.random.get_rng_state()
    first, again = (capalloc.propagate(model, x, solver=Block(num_probes=8, max_seconds=None)) for _ in range(2))
    other = capalloc.propagate(model, x, solver=Block(num_probes=8, max_seconds=None, seed=5))
    many = capalloc.propagate(model, x, solver=Block(num_probes=64, max_seconds=None))
    np.testing.assert_array_equal(first.capacity, again.capacity)
    assert not np.array_equal(first.capacity, other.capacity)
    assert float(many.capacity.standard_error.mean()) < 0.6 * float(first.capacity.standard_error.mean())
    assert torch.equal(state, torch.random.get_rng_state())


def test_standard_errors_are_those_of_repetitions():
    model, x = dense(reference_weights()), gaussian(40, 3)
    found = [
        capalloc.propagate(model, x, solver=Block(num_steps=6, num_probes=16, max_seconds=None, seed=s))
        for s in range(12)
    ]
    spread = np.std([f.capacity.to_numpy() for f in found], axis=0, ddof=1)
    claimed = np.mean([f.capacity.standard_error.to_numpy() for f in found], axis=0)
    np.testing.assert_allclose(claimed, spread, rtol=0.6)  # 12 repetitions know a deviation to a fifth, three slots


@pytest.mark.parametrize(("probes", "steps"), [(2, 4), (4, 0)])
def test_two_standard_errors_cover_what_few_probes_miss(probes, steps):
    """By two variances of one square each: what stands alone is told with Student's factor, inputs together."""
    model, x = seeded_module(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))), gaussian(16, 6)
    solver = partial(Block, steps, num_probes=probes, max_seconds=None)
    found = [capalloc.propagate(model, x, solver=solver(seed=seed)) for seed in range(20)]

    def missed(values, errors):
        return np.abs(values - np.mean(values, 0)) / np.maximum(errors, 1e-12)

    tensors = [list(f.attrs["by_parameter_standard_error"].values()) for f in found]
    shares = [
        missed([f.capacity.to_numpy() for f in found], [f.capacity.standard_error.to_numpy() for f in found]),
        missed([f.bias for f in found], [f.attrs["bias_standard_error"] for f in found]),
        missed([f.by_parameter.to_numpy() for f in found], tensors),
    ]
    assert [float((one <= 2).mean()) for one in shares] == pytest.approx([0.95] * 3, abs=0.08)


def test_float32_models_give_the_map_of_float64():
    model, x = dense(reference_weights()), gaussian(40, 3)
    wide = capalloc.propagate(model, x, solver=Block(max_seconds=None))
    narrow = capalloc.propagate(model.float(), x.float(), solver=Block(max_seconds=None))
    np.testing.assert_allclose(narrow.capacity, wide.capacity, rtol=1e-3)


def test_few_constraints_are_said_to_be_few():
    model, x = seeded_module(lambda: nn.Sequential(nn.Linear(8, 60), nn.ReLU(), nn.Linear(60, 40))), gaussian(2, 8)
    found = capalloc.propagate(model, x, solver=Block(2, num_probes=4))
    low, high = found.attrs["total_range"]
    assert 0 < low < high  # steps come from below
    assert found.total == pytest.approx(high)
    alone = capalloc.propagate(model, x, solver=Block(0, num_probes=4))
    assert alone.attrs["total_range"][0] == 0  # nothing is known from below
    assert "from blocks alone" in alone.attrs["notes"][0]
    assert (alone.attrs["missing"], found.attrs["missing"]) == (0.25, 0.25)  # from two examples, steps that find little
    assert any("constraints of these examples for" in note for note in found.attrs["notes"])
    assert "after 2 steps" in found.attrs["notes"][0]


@pytest.mark.parametrize("num_steps", [0, "auto"])
def test_a_network_that_computes_nothing_has_no_capacity(num_steps):
    model = seeded_module(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    found = capalloc.propagate(model, gaussian(30, 3), solver=Block(num_steps))
    assert (found.total, found.bias, float(found.by_parameter.sum())) == (0, 0, 0)


def test_what_is_too_much_for_one_goes_to_the_others():
    values = np.array([50.0, 1, 3, 6, 0])
    np.testing.assert_allclose(capped(values, 20.0), [20, 5, 15, 20, 0])  # 6 grows beyond 20 in its turn
    np.testing.assert_array_equal(capped(values, 12.0), values)  # fewer constraints than capacity: no answer to cap
    np.testing.assert_array_equal(capped(values, 60.0), values)
    most = np.array([10.0, 4.0, 30.0, 40.0, 1.0])  # one for each
    np.testing.assert_allclose(capped(values, most).sum(), values.sum())
    assert (capped(values, most) <= most + 1e-12).all()


@pytest.mark.proves("4", "no slot holds more than its constraints", oracle="examples times outputs")
@pytest.mark.parametrize("examples", [1, 2, 4])
def test_no_input_holds_more_than_its_constraints_after_steps(examples):
    x = gaussian(examples, 12, seed=1)
    model = seeded_module(lambda: nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)))
    found = capalloc.propagate(model, x, solver=Block(num_steps=4, num_probes=2))
    held = np.append(found.capacity, found.bias)
    assert held.max() <= 3 * examples * (1 + 1e-9)
    assert held.sum() == pytest.approx(found.by_parameter.sum())


def test_no_tensor_holds_more_than_its_parameters():
    model, x = dense(reference_weights()), gaussian(40, 3)
    found = capalloc.propagate(model, x, solver=Block(num_steps=0, num_probes=2))
    sizes = [p.numel() for p in model.parameters()]
    assert (found.by_parameter.to_numpy() <= np.array(sizes) + 1e-9).all()
    assert float(found.by_parameter.sum()) == pytest.approx(found.total)


def test_time_ends_the_steps():
    model, x = dense(reference_weights()), gaussian(40, 3)
    found = capalloc.propagate(model, x, solver=Block(max_seconds=1e-9))
    assert found.attrs["num_steps"] == 0
    assert any("max_seconds=1e-09 was not held: about" in note for note in found.attrs["notes"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_probes": 1}, r'num_probes must be "auto" or an integer >= 2'),
        ({"num_steps": -1}, r'num_steps must be "auto" or an integer >= 0, got -1'),
        ({"max_seconds": 0.0}, "max_seconds must be > 0 or None, got 0.0"),
        ({"output_probes": 0}, "output_probes must be an integer >= 1 or None, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Block(**settings)


@pytest.mark.parametrize("examples", [2, 40])
@pytest.mark.parametrize("solver", ["auto", "block"])
def test_unused_parameters_are_those_that_no_constraint_moves(examples, solver):
    """Dead units and a bias before an instance norm, with more and with fewer constraints than parameters."""
    layers = [nn.Conv1d(1, 3, 3), nn.InstanceNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU()]
    model, x = nn.Sequential(*layers, nn.Linear(4, 2)).double(), gaussian(examples, 1, 6)
    with torch.no_grad():
        model[4].bias[1] = -100.0  # its unit never opens
    found = capalloc.propagate(model, x, solver=solver).attrs

    def constraints(params, one):
        run = lambda z: torch.func.functional_call(model, params, (z[None],))[0]  # noqa: E731
        return torch.func.jacrev(run)(one), run(one)

    by_tensor = torch.func.vmap(torch.func.jacrev(constraints), in_dims=(None, 0))(dict(model.named_parameters()), x)
    moved = sum(
        int(torch.cat([part[name].reshape(-1, p.numel()) for part in by_tensor]).abs().amax(0).gt(1e-12).sum())
        for name, p in model.named_parameters()
    )
    assert found["unused_params"] == sum(p.numel() for p in model.parameters()) - moved >= 3 + 15
    assert (found["unseen_params"], found["symmetries_exact"]) == (0, False)
    assert found["symmetries"] >= (1 if examples > 2 else 0)  # an open unit rescales


@pytest.mark.parametrize(
    ("change", "seconds", "ends"),
    [(0.0149, 0, True), (0.0151, 0, False), (0.0249, 16, True), (0.0251, 16, False), (0.1, 31, True)],
)
def test_steps_end_when_the_map_is_near_or_there_is_no_time_for_twice_as_many(change, seconds, ends):
    found = after_steps(0.8, 1.0, change)
    enough = Enough(Block(max_seconds=30.0), time.perf_counter() - seconds)
    assert enough(found) == ends
    assert not enough(Refinement(found.readings[:1], found.unused))


@pytest.mark.parametrize(
    ("steps", "seconds", "late"), [(1, 30.0, False), (2, 6.0, False), (2, 8.0, True), (5, 8.0, True)]
)
def test_a_step_is_not_taken_where_it_would_end_late(steps, seconds, late):
    """Ten seconds are left, for the step and half as long for its reading; two steps are taken in any case."""
    assert Enough(Block(max_seconds=30.0), time.perf_counter() - 20).after(steps, seconds) == late
    assert not Enough(Block(max_seconds=30.0, num_steps=4), time.perf_counter() - 20).after(steps, seconds)


def after_steps(before: float, seen: float, change: float) -> Refinement:
    """Two slots of four examples after two and four steps, which have found these shares of two parameters."""
    shares = ((before, 0.0), (seen, change))
    slots = [2 * share * torch.tensor([[0.5 + d, 0.5 - d]]).double() for share, d in shares]
    readings = tuple(
        ProbeReading(k, part, torch.zeros(1, 1), BlockMoments(part.expand(4, 2) / 4, torch.zeros(4, 2), 10**9), 1.0)
        for k, part in zip((2, 4), slots, strict=True)
    )
    return Refinement(readings, torch.zeros(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("before", "seen", "change", "expected"),
    [
        (0.8, 1.0, 0.01, 0.02),  # all is found: twice the change
        (0.7, 0.8, 0.01, 0.02),
        (0.3, 0.4, 0.01, 0.06),  # six times as much is to be found as the last steps found
        (0.3, 0.4, 0.02, 0.08),
        (0.1, 0.2, 0.01, 0.08),
        (0.1, 0.2, 0.02, 0.12),  # too little is found to be nearer than blocks
    ],
)
def test_what_is_missing_follows_from_what_steps_have_found(before, seen, change, expected):
    assert missing(after_steps(before, seen, change)) == pytest.approx(expected)
    assert missing(after_steps(before / 2, seen / 2, change), total=1.0) == pytest.approx(expected)


@pytest.mark.parametrize(("gate", "passes"), [(nn.ReLU, (46, 46, 124)), (nn.Tanh, (80, 80, 230))])
def test_a_large_network_takes_passes_for_each_of_its_examples(gate, passes, monkeypatch):
    monkeypatch.setattr("capalloc._propagate.effort.LARGE_PARAMS", 10)
    monkeypatch.setattr("capalloc._propagate.effort.seconds_of_operation", lambda device: 0.0)
    model = seeded_module(lambda: nn.Sequential(nn.Linear(3, 4), gate(), nn.Linear(4, 2)))
    found = []
    for examples in (1, 2, 8):
        task = make_task(model, gaussian(examples, 3))
        found.append(forecast_seconds(task.problem, task.size, 1.0, limit=30.0))
    assert tuple(found) == passes


def test_as_many_probes_as_the_time_allows():
    assert affordable(64, 30.0, 1e-3) == 64
    assert affordable(64, 30.0, 2.5) == 12
    assert affordable(64, 30.0, 1e3) == affordable(64, -1.0, 1.0) == 2


@pytest.mark.parametrize(
    ("left", "kept"),
    [(1e9, None), (8.0, None), (6.0, 15), (0.8, 2), (0.2, 2), (-1.0, 2)],  # 16 probes are read in 8 s with all 20
)
def test_as_few_outputs_as_sixteen_probes_have_time_for(left, kept):
    examples = SimpleExamples(rows_per_example=60, num_slots=3, num_params=10, num_examples=8)
    assert fewer_outputs(examples, left, 1.0).output_probes == kept


@pytest.mark.parametrize(
    ("left", "fixed", "expected"),
    [
        (1e9, False, (None, 20, 16)),
        (40.0, False, (None, 8, 16)),  # sixteen probes have time for two steps; eight for four
        (39.0, False, (None, 20, 0)),
        (4.0, False, (10, 16, 0)),
        (4.0, True, (None, 8, 0)),
    ],
)
def test_steps_probes_and_outputs_are_as_many_as_there_is_time_for(left, fixed, expected, monkeypatch):
    monkeypatch.setattr(
        "capalloc._propagate.effort.seconds_of_step", lambda examples: (examples.output_probes or 20) / 20
    )
    examples = SimpleExamples(rows_per_example=60, num_slots=3, num_params=10, num_examples=8)
    found = in_time(Effort(examples, 20, 16), left, fixed, keep=False)
    assert (found.examples.output_probes, found.probes, found.steps) == expected


@pytest.mark.parametrize(
    ("rows", "combinations", "many"), [(13, None, True), (13, 4, False), (16, 1, False), (16, 2, True)]
)
def test_steps_need_many_constraints_and_many_of_the_constant(rows, combinations, many):
    examples = SimpleExamples(
        rows_per_example=rows, num_params=30, num_slots=5, num_examples=8, output_probes=combinations
    )
    assert has_many_constraints(examples) == many  # 4 a parameter, and of the constant a half


def test_blocks_of_few_outputs_are_as_near_as_they_say():
    model, x = seeded_module(lambda: nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12))), gaussian(16, 12)
    measured = capalloc.measure(model, x)
    found = capalloc.propagate(model, x, solver=Block(num_probes=16, output_probes=1, max_seconds=None))
    assert (found.attrs["num_steps"], found.attrs["missing"]) == (0, 0.12)
    assert capalloc.total_variation(found, measured) < 0.12
    assert not found.attrs["total_exact"]  # 208 constraints of the 512 parameters
    assert found.attrs["total_range"][0] == 492  # from other combinations
    assert found.total == pytest.approx(measured.total)


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_products_of_one_output_and_vector_at_a_time_are_those_of_all(name):
    conv = (lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)), (5, 1, 10))
    build, shape = NETWORKS.get(name, conv)
    with exact_derivatives():
        task = make_task(seeded_module(lambda: build()).double(), gaussian(*shape))
        examples, _ = plan_examples(task, Block(num_probes=3))
        images, rows = [], []
        for made in (examples, replace(examples, lean=True)):
            sums = ExampleSums(made, Steps(made))
            images.append(sums.noise(0, 3))
            rows.append(sums.push(images[0]))
    torch.testing.assert_close(images[1], images[0])
    torch.testing.assert_close(rows[1], rows[0])


def test_steps_are_as_many_as_memory_holds():
    z, ladder = torch.ones(2, 10).double(), (2, 4, 8, 16)
    assert in_memory(ladder, Block(), z, Budget(22 * 160)) == ladder
    assert in_memory(ladder, Block(), z, Budget(21 * 160)) == (2, 4, 8)
    with pytest.raises(MemoryError, match=r"2 steps of 2 probes of 10 parameters needs .* take fewer steps or probes"):
        in_memory(ladder, Block(), z, Budget(7 * 160))
    with pytest.raises(MemoryError, match="16 steps of 2 probes"):
        in_memory((8, 16), Block(16), z, Budget(21 * 160))


def test_two_combinations_of_outputs_stand_for_all_or_one_where_memory_holds_no_more():
    model = seeded_module(lambda: nn.Sequential(nn.Linear(300, 3), nn.Tanh(), nn.Linear(3, 9)))
    task = make_task(model, gaussian(1, 300))
    found = []
    bases = cost_of(task, 1).bases
    for size in range(200_000, 600_000, 20_000):
        try:
            limited = replace(task, budget=Budget(bases + size))
            found.append(plan_combinations(limited, Block(), 2, LONGEST)[0].output_probes)
        except MemoryError:
            found.append(0)
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}


def test_a_plan_counts_the_vectors_and_bases_that_are_held():
    model = seeded_module(lambda: nn.Sequential(nn.Linear(300, 40), nn.Tanh(), nn.Linear(40, 9)))
    task = make_task(model, gaussian(1, 300))
    assert cost_of(task, 1, 40).bases == 2 * 8 * (3 * 40**2 + 2 * 9**2) + 3 * 8 * 40**2
    two, one = (plan_examples(task, Block(), number, 40)[1].num_bytes for number in (2, 1))
    assert two - one > 6 * 8 * task.size.params / 2  # vectors in float64


@pytest.mark.parametrize("name", ["relu", "attention"])
def test_samples_are_the_same_however_they_are_cut(name, monkeypatch):
    relu = (lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)), (9, 1, 10))
    build, shape = NETWORKS.get(name, relu)
    moments = []
    with exact_derivatives():
        task = make_task(seeded_module(lambda: build()).double(), gaussian(*shape).double())
        examples, _ = plan_examples(task, Block(num_probes=2))
        for cut in ((1, 2), (3, 2), (8, 2)):
            monkeypatch.setattr(Examples, "apart", lambda *_, cut=cut: cut)
            drawn = (*samples_of_outputs(examples, spread(examples, 5), 4, 1), *samples(examples, 0))
            found = torch.cat([torch.cat([*pieces], 1) for pieces in drawn])
            moments.append(found.T @ found)
    for other in moments[1:]:
        torch.testing.assert_close(other, moments[0], rtol=1e-10, atol=1e-10)


def test_symmetries_are_counted_on_all_the_examples() -> None:
    """Units that are dead on the first example rescale on others: the total loses theirs too."""
    net = seeded_module(nn.Sequential, nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, 2))
    x = gaussian(12, 20)
    of_all = capalloc.propagate(net, x, solver="markov").attrs["symmetries"]
    of_one = capalloc.propagate(net, x[:1], solver="markov").attrs["symmetries"]
    found = capalloc.propagate(net, x, solver=capalloc.solvers.Block(0, num_probes=2)).attrs
    assert found["symmetries"] == of_all > of_one
    assert found["total_range"][1] == found["num_params"] - found["unused_params"] - of_all


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.LayerNorm(60)], ids=["none", "of each example"])
def test_a_total_with_norms_that_move_is_a_guide(norm) -> None:
    net = seeded_module(
        nn.Sequential, nn.Linear(20, 60), norm(), nn.ReLU(), nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, 2)
    )
    found = capalloc.propagate(net, gaussian(12, 20), solver=capalloc.solvers.Block(0, num_probes=2))
    guide = any("the total is a guide, no bound" in note for note in found.attrs["notes"])
    assert guide == isinstance(net[1], nn.LayerNorm)
    used = found.attrs["num_params"] - found.attrs["unused_params"]
    assert found.attrs["total_range"][1] == pytest.approx(used if guide else found.total)

"""Answers do not depend on what surrounds the call: autocast, default devices, inference mode, other threads."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint

import capalloc
from capalloc import depth_limit, gates, linear, solvers
from zoo import gaussian

NET = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2))
LINE = nn.Linear(4, 1, bias=False)
X, FLAT = gaussian(4, 1, 3).float(), gaussian(6, 4).float()


class Attention(nn.Module):
    """It makes tensors of the default dtype, too, where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.transpose(1, 2))
        return (h + self.mix(h, h, h, need_weights=False)[0] * torch.ones(4, device=x.device)).mean(1)


ATTENTION = Attention()
FIRST, FRONT = NET[:1], NET[:2]
STOCHASTIC = solvers.Stochastic(num_probes=2, spectrum=False)
BLOCK, EXACT = solvers.Block(num_probes=4, num_steps=1), {"ridge": 0.1, "solver": "dense"}
CALLS: dict[str, Callable[[], Any]] = {
    "measure": lambda: capalloc.measure(NET, X, **EXACT).capacity.values,
    "measure attention": lambda: capalloc.measure(ATTENTION, X, **EXACT).capacity.values,
    "measure by probes": lambda: capalloc.measure(LINE, FLAT, ridge=0.1, solver=STOCHASTIC).capacity.values,
    "propagate": lambda: capalloc.propagate(NET, X, solver="markov").capacity.values,
    "propagate by blocks": lambda: capalloc.propagate(NET, X, solver=BLOCK).capacity.values,
    "walk": lambda: capalloc.walk(NET, X).inputs.values,
    "output_gram": lambda: capalloc.output_gram(NET, X).numpy(),
    "effective_parameters": lambda: capalloc.effective_parameters(NET, X, ridge=0.1).total,
    "receptive_field": lambda: capalloc.receptive_field(FIRST, X).map.values,
    "decoupling": lambda: capalloc.decoupling(NET, X).data.to_array().values,
    "scaling": lambda: capalloc.scaling(NET, X).data.to_dataframe().to_string(),
    "shattering": lambda: capalloc.shattering(NET, X).data.to_dataframe().to_string(),
    "diagnose": lambda: repr(capalloc.diagnose(NET, X)),
    "export": lambda: torch.cat([p.flatten() for p in capalloc.export(NET, X).state_dict.values()]).numpy(),
    "prune_scores": lambda: capalloc.prune_scores(NET, X).share.values,
    "audit": lambda: capalloc.audit(NET, X).data.to_array().values,
    "balance": lambda: torch.cat([p.detach().flatten() for p in capalloc.balance(NET, X).parameters()]).numpy(),
    "rank": lambda: capalloc.rank([NET], X).data.drop_vars("depth").to_array().values,
    "gates.gate_moments": lambda: [m.numpy() for m in gates.gate_moments(NET, X).values()],
    "gates.gaussian_decoupling": lambda: gates.gaussian_decoupling("gelu", 0.5),
    "gates.gaussian_gate_moment": lambda: gates.gaussian_gate_moment("tanh", 0.5),
    "solvers.mean_eigenvalue": lambda: solvers.mean_eigenvalue(NET, X),
    "depth_limit.read": lambda: repr(depth_limit.read(FRONT, X)),
    "linear.model_jacobian": lambda: linear.model_jacobian(LINE, (4,)).values,
    "linear.estimate_covariance": lambda: linear.estimate_covariance(FLAT).matrix.numpy(),
    "linear.train": lambda: linear.train(LINE, linear.prediction(linear.autoregression([0.5]), 4)).filter.numpy(),
    "architectures.make": lambda: repr(capalloc.architectures.make("mlp")),
}


@contextmanager
def half_precision() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        yield


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND: dict[str, Callable[[], Any]] = {
    "autocast and no gradients": half_precision,
    "another default device": default_device,
    "another default dtype and fused kernels": default_dtype,
    "inference mode": torch.inference_mode,
    "deterministic algorithms": deterministic,
}


@pytest.fixture(scope="module", autouse=True)
def weights():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for p in (*NET.parameters(), *LINE.parameters(), *ATTENTION.parameters()):
            p.data.normal_()


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """What every call gives alone, with nothing around it."""
    return {name: call() for name, call in CALLS.items()}


def state() -> tuple[Any, ...]:
    """What calls must leave as it is."""
    cuda = torch.backends.cuda
    flags = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    defaults = (torch.get_default_dtype(), torch.get_default_device())
    return (*flags, *modes, *defaults, torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state().tolist())


def test_every_method_that_takes_a_model_is_tried():
    rooms = {"": capalloc, "gates.": gates, "solvers.": solvers, "linear.": linear, "depth_limit.": depth_limit}
    takes = {
        room + name for room, held in rooms.items() for name in dir(held) if "model" in _parameters(getattr(held, name))
    }
    assert takes <= set(CALLS)


def _parameters(thing: Any) -> list[str]:
    return list(inspect.signature(thing).parameters) if inspect.isfunction(thing) else []


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("around", AROUND)
def test_surroundings_change_nothing(answers, around: str, name: str):
    with AROUND[around]():
        before = state()
        found = CALLS[name]()
        after = state()
    np.testing.assert_array_equal(found, answers[name])
    assert after == before


def pruned(model: nn.Module) -> nn.Module:
    """A copy whose weights are products with a mask of ones, made anew before each run."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d)):
            prune.identity(layer, "weight")
    return model


MODELS = ("NET", "LINE", "ATTENTION", "FIRST", "FRONT")
WITHOUT_MODEL = {"gates.gaussian_decoupling", "gates.gaussian_gate_moment", "linear.estimate_covariance"}
OF_MODELS = [name for name in CALLS if name not in WITHOUT_MODEL | {"architectures.make"}]
#: Probes are drawn, and tensors listed, in the order of parameters, which pruning changes.
OF_ANOTHER_ORDER = {"propagate by blocks", "prune_scores", "decoupling", "audit", "rank", "export"}


def wrap_all(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[nn.Module], nn.Module]) -> None:
    here = sys.modules[__name__]
    for name in MODELS:
        monkeypatch.setattr(here, name, wrap(getattr(here, name)))


@pytest.mark.parametrize("name", OF_MODELS)
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models_are_the_models_within(answers, monkeypatch, wrap, name: str):
    wrap_all(monkeypatch, wrap)
    np.testing.assert_array_equal(CALLS[name](), answers[name])


@pytest.mark.parametrize("name", OF_MODELS)
def test_models_of_distributed_training_are_the_models_within(answers, monkeypatch, name: str):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrap_all(monkeypatch, nn.parallel.DistributedDataParallel)
        np.testing.assert_array_equal(CALLS[name](), answers[name])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", OF_MODELS)
def test_pruned_models_are_those_of_their_weights_or_are_refused(answers, monkeypatch, name: str):
    wrap_all(monkeypatch, pruned)
    if name in ("measure attention", "balance"):  # torch's attention reads a weight as it was when it was pruned
        with pytest.raises(ValueError, match="model cannot be copied"):
            CALLS[name]()
    elif name in OF_ANOTHER_ORDER:
        CALLS[name]()
    elif isinstance(answers[name], str):
        assert CALLS[name]() == answers[name]
    else:
        np.testing.assert_allclose(CALLS[name](), answers[name], rtol=1e-5)


@pytest.mark.parametrize("name", OF_MODELS)
@pytest.mark.parametrize(
    ("wrap", "said"),
    [(lambda model: copy.deepcopy(model).to("meta"), "on the meta device"), (torch.jit.script, "is TorchScript")],
    ids=["meta", "scripted"],
)
def test_models_without_values_or_python_are_refused_with_what_to_do(monkeypatch, wrap, said: str, name: str):
    wrap_all(monkeypatch, wrap)
    with pytest.raises((TypeError, ValueError), match=said):
        CALLS[name]()


class Enters(nn.Linear):
    """Enters a transform of torch.func, and fails before it leaves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._C._functorch._vmap_increment_nesting(1, "error")
        raise ValueError("the model fails")


@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate, capalloc.walk])
def test_transforms_that_a_model_enters_end_with_the_call(method):
    with pytest.raises(ValueError, match="model"):
        method(Enters(3, 2), torch.ones(4, 3))
    assert torch._C._functorch.maybe_current_level() is None


class Patched(nn.Module):
    """Asks for all that runs are surrounded by, and calls `during` in each."""

    def __init__(self, during: Callable[[], object]) -> None:
        super().__init__()
        self.a, self.during = nn.Linear(3, 4), during

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = checkpoint(self.a, x, use_reentrant=True)
        if h.requires_grad:
            h.register_hook(lambda gradient: None)
        self.during()
        return torch.zeros(len(x), 2).to(x.dtype).scatter(1, PLACES.expand(len(x), -1), h)


PLACES = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate, capalloc.output_gram])
def test_an_interrupt_leaves_torch_as_it_was(method):
    """Whichever run of the model it meets: modes, and what stands in the place of checkpoints and of `torch.cond`."""
    runs = [0, 0]  # so far, and the one that is interrupted

    def interrupt() -> None:
        runs[0] += 1
        if runs[0] == runs[1]:
            raise KeyboardInterrupt

    def around() -> tuple[object, ...]:
        stack = torch._C._len_torch_function_stack(), torch.zeros(2).add(1).dtype
        return (*state(), *stack, torch.cond, checkpoints.CheckpointFunction, torch.Tensor.register_hook)

    model, before = Patched(interrupt), around()
    method(model, gaussian(3, 3).float())
    for each in range(1, runs[0], 3):
        runs[:] = 0, each
        with pytest.raises(KeyboardInterrupt):
            method(model, gaussian(3, 3).float())
        assert around() == before


def test_other_threads_go_on_with_torchs_own():
    """There autograd credits all entries written to one place, and checkpoints run again for their gradients."""

    def gradient() -> list[object]:
        x, seen, calls = torch.ones(1, 4, requires_grad=True), [], [0]

        def twice(x: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            return 2 * x

        x.register_hook(seen.append)
        h = checkpoint(twice, x, use_reentrant=True)
        h = torch.zeros(1, 2).scatter(1, PLACES[None], h)
        h.sum().backward()
        return [*x.grad.flatten().tolist(), len(seen), calls[0]]

    found = []
    with ThreadPoolExecutor(1) as other:
        expected = other.submit(gradient).result()
        capalloc.measure(Patched(lambda: found.append(other.submit(gradient).result())), gaussian(3, 3).float())
    assert all(each == expected for each in found)
    assert expected == [2.0] * 4 + [1, 2]


QUICK = ("output_gram", "effective_parameters", "linear.model_jacobian", "solvers.mean_eigenvalue")


def test_calls_of_several_threads_wait_for_each_other(answers):
    """Eight threads make forty calls each, of all kinds, and find what one alone finds."""
    before, interval, names = state(), sys.getswitchinterval(), list(CALLS)

    def forty(thread: int) -> None:
        for name in [names[(3 * thread + k) % len(names)] for k in range(3)] + [QUICK[k % 4] for k in range(37)]:
            np.testing.assert_array_equal(CALLS[name](), answers[name])

    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(forty, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert state() == before


def test_an_allocator_that_has_no_more_is_a_memory_error_with_a_way_out() -> None:
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7372800 bytes")

    advice = r"memory ran out: take fewer examples, a smaller batch_size= or fewer parameters .*7372800 bytes"
    with pytest.raises(MemoryError, match=advice):
        capalloc.measure(nn.Sequential(nn.Linear(2, 2), Large()), torch.ones(3, 2))
    with pytest.raises(ValueError, match="inputs hold no example"):
        capalloc.measure(nn.Linear(2, 2), torch.ones(0, 2))

"""Diagonals, receptive fields and effective dimensions beside the packages that give them: time, memory, error."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

import capalloc
from benchmarks.fresh_process import peak_memory, report
from benchmarks.gram import problem
from benchmarks.gram_contenders import jacobian
from benchmarks.propagate import image, resnet50
from benchmarks.table import Table, median_seconds
from capalloc._model.problem import seeded

REPEATS, MATVECS, EXAMPLES_OF_DIMENSION = 3, 100, 128
#: Of the effective dimension, in units of G.
RIDGE = 1e-2
PIXELS, LAST = 224, "resnet.encoder.stages.3.layers.2.layer.2.convolution"


def ours_diagonal() -> Tensor:
    return capalloc.output_gram(*problem(), side="diagonal")


def torch_func_diagonal() -> Tensor:
    return torch.cat([part.square().sum((0, 1)).flatten() for part in jacobian(*problem()).values()])


def backpack_diagonal() -> Tensor:
    import backpack
    from backpack.extensions import DiagGGNExact

    net, x = problem()
    loss = backpack.extend(nn.MSELoss(reduction="sum"))  # its second derivative is 2
    with backpack.backpack(DiagGGNExact()):
        loss(backpack.extend(net)(x), torch.zeros(len(x), 10)).backward()
    return torch.cat([cast(Any, p).diag_ggn_exact.flatten() for p in net.parameters()]) / 2


def nngeometry_diagonal() -> Tensor:
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    net, x = problem()
    data = torch.utils.data.TensorDataset(x, torch.zeros(len(x), dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, len(x))
    found = FIM(net, loader, PMatDiag, "regression").get_diag()
    return cast(Tensor, found) * len(x)  # a mean over examples


def gauss_newton() -> Any:
    from curvlinops import GGNLinearOperator

    net, x = problem()
    params = [p for p in net.parameters() if p.requires_grad]
    loss = nn.MSELoss(reduction="sum")
    return GGNLinearOperator(net, loss, params, [(x, torch.zeros(len(x), 10))], check_deterministic=False)


def curvlinops_diagonal(estimate: str) -> Tensor:
    import curvlinops

    return cast(Tensor, getattr(curvlinops, estimate)(gauss_newton(), num_matvecs=MATVECS)).detach() / 2


class Symmetric:
    """What skerch multiplies by: rows on the left of a symmetric operator."""

    def __init__(self, operator: Any) -> None:
        self.operator, self.shape = operator, operator.shape

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        return cast(Tensor, (self.operator @ rows.T.contiguous()).T)

    def __matmul__(self, columns: Tensor) -> Tensor:
        return cast(Tensor, self.operator @ columns)


def skerch_diagonal() -> Tensor:
    from skerch.algorithms import hutch

    return cast(Tensor, hutch(Symmetric(gauss_newton()), "cpu", torch.float32, MATVECS)["diag"]).detach() / 2


@cache
def built() -> nn.Module:
    """Whose weights take as long to draw as the field does to find."""
    return resnet50()


def ours_field() -> Tensor:
    found = capalloc.receptive_field(built(), image(PIXELS), layer=LAST)
    return torch.tensor([found.sizes["row"], found.sizes["column"]])


def torchlens_field() -> Tensor:
    """Where one gradient at these weights is not zero: its geometric field ends at the first branch."""
    import torchlens

    ready = torchlens.options.CaptureOptions(backward_ready=True)
    x = image(PIXELS).requires_grad_(True)
    trace = torchlens.trace(built(), x, capture=ready, save_mode="reference")
    last = [op for op in trace.ops if op.label.startswith("conv2d")][-1]
    (found,) = last.receptive_field.gradient((0, 0, 3, 3)).values()
    return torch.tensor([int(found.support_mask.flatten(0, -3).any(0).any(k).sum()) for k in (1, 0)])


def dense() -> tuple[nn.Module, Tensor]:
    """A network of 2410 parameters: laplace-torch takes minutes of all 9718 of the other."""
    with seeded(0, torch.device("cpu")):
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        return net.eval(), torch.randn(EXAMPLES_OF_DIMENSION, 64)


def ours_dimension() -> Tensor:
    return torch.tensor([capalloc.effective_parameters(*dense(), ridge=RIDGE).total])


def laplace_dimension() -> Tensor:
    """MacKay's: the parameters less the prior precision times the trace of the posterior covariance."""
    from laplace import Laplace

    net, x = dense()
    prior = len(x) * RIDGE
    la = Laplace(net, "regression", subset_of_weights="all", hessian_structure="full", prior_precision=prior)
    data = torch.utils.data.TensorDataset(x, torch.zeros(len(x), 10))
    la.fit(torch.utils.data.DataLoader(data, len(x)))
    return (la.n_params - prior * la.posterior_covariance.trace())[None]


#: what -> by -> (the way, the package that it needs); the first of each is ours.
WAYS: dict[str, dict[str, tuple[Callable[[], Tensor], str]]] = {
    "diagonal of J' J": {
        'capalloc.output_gram(side="diagonal")': (ours_diagonal, "capalloc"),
        "torch.func, vmap of jacrev": (torch_func_diagonal, "torch"),
        "BackPACK, DiagGGNExact": (backpack_diagonal, "backpack"),
        "nngeometry, PMatDiag": (nngeometry_diagonal, "nngeometry"),
        f"curvlinops, Hutchinson, {MATVECS} products": (partial(curvlinops_diagonal, "hutchinson_diag"), "curvlinops"),
        f"curvlinops, XDiag, {MATVECS} products": (partial(curvlinops_diagonal, "xdiag"), "curvlinops"),
        f"skerch, Hutchinson, {MATVECS} products": (skerch_diagonal, "skerch"),
    },
    "receptive field of a ResNet-50's last convolution": {
        "capalloc.receptive_field, exact for any weights, with its energies": (ours_field, "capalloc"),
        "torchlens, support of one gradient": (torchlens_field, "torchlens"),
    },
    "effective dimension": {
        "capalloc.effective_parameters": (ours_dimension, "capalloc"),
        "laplace-torch, full": (laplace_dimension, "laplace"),
    },
}


def run() -> Table:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for what in WAYS for row in compare(what)]
    finally:
        torch.set_num_threads(threads)
    return Table(
        "Side by side",
        "float32, one thread. J of the network and images of the Gram matrices above; the error of a diagonal is the "
        "norm of the difference to our float64 answer over its norm, that of its sum, the trace, beside it. The "
        "effective dimension is of a dense network of 2410 parameters, "
        f"{EXAMPLES_OF_DIMENSION} examples, ridge {RIDGE:g}. Medians of {REPEATS}. Memory: what one call needs at its "
        "peak above the imports, in a process of its own.",
        ("what", "by", "time", "over ours", "peak memory", "found", "error", "of the trace"),
        rows,
    )


def compare(what: str) -> list[tuple[str, ...]]:
    """All who are installed for one of the figures."""
    ways = WAYS[what]
    exact = exactly() if what.startswith("diagonal") else None
    rows: list[tuple[str, ...]] = []
    first = 0.0
    for by, (way, package) in ways.items():
        if importlib.util.find_spec(package) is None:
            rows.append((what, by, "not installed", "", "", "", "", ""))
            continue
        way()  # loads what is loaded once
        seconds, found = median_seconds(way, REPEATS)
        first = first or seconds
        error = ("", "")
        if exact is not None:
            apart = float((found.double() - exact).norm() / exact.norm())
            error = (f"{apart:.0e}", f"{abs(float(found.double().sum() / exact.sum()) - 1):.0e}")
        said = " x ".join(f"{v:.4g}" for v in (found if exact is None else found.sum()[None]).tolist())
        memory = f"{peak_memory('side_by_side', what, by):.0f} MiB"
        rows.append((what, by, f"{seconds:.3f} s", f"{seconds / first:.2f}", memory, said, *error))
    return rows


def exactly() -> Tensor:
    net, x = problem()
    return capalloc.output_gram(net.double(), x.double(), side="diagonal")


def report_peak(what: str, by: str) -> None:
    """Above the imports."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    way, package = WAYS[what][by]
    importlib.import_module(package)
    report(way)

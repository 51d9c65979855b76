"""The result of `effective_parameters`: works from a saved file, with no model at hand."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from capalloc._runtime.arguments import checked
from capalloc.results.base import Result, Variable, axis_rows
from capalloc.results.frames import module_sums
from capalloc.results.view import Axis, Chart, Fact, Line, Table, View, standing

#: Relative difference that sums over parameters and over examples may have.
SPLIT_TOLERANCE = 1e-6
#: Eigenvalues of 1 - H_nn up to which an example decides its own prediction alone, and none is left without it.
DECIDES = 1e-7


class EffectiveParameters(Result):
    """Number of parameters that the outputs of N examples determine, by parameter tensor and by example.

    With $J = d f_o(x_n) / d theta$, $G = J'J / N$ and the hat matrix $H = J (J'J + N ridge)^-1 J'$ (docs/theory.md, 2):

    - `by_parameter`, over "parameter": the trace of $(G + ridge)^-1 G$ on each tensor;
    - `hat`, over ("example", "output", "other"): the blocks $H_nn$ of one example;
    - `leverage`, over ("example", "output"): their diagonal, from 0 to 1;
    - `eigenvalue`, over "node": those of G that count.

    All three sum to `total`, the trace of H, at most the number of parameters and that of examples x outputs.

    Args:
        data: the Dataset with those variables.

    Raises:
        ValueError: a variable is missing, or sums differ.

    """

    FORMAT = "capalloc-effective-parameters"
    MAKER = "capalloc.effective_parameters()"
    SCHEMA: ClassVar = {
        "parameter": Variable(("parameter",)),
        "by_parameter": Variable(("parameter",), 0, finite=True),
        "leverage": Variable(("example", "output"), 0, 1, finite=True),
        "hat": Variable(("example", "output", "other"), finite=True),
        "eigenvalue": Variable(("node",), 0, finite=True),
    }
    SETTINGS = ("num_params", "num_examples", "num_outputs", "ridge", "rank")
    ROWS: ClassVar = {"params": axis_rows("parameter"), "examples": lambda result: result.by_example.to_dataframe()}
    VALUES = ("total", *SETTINGS)

    def check(self) -> None:
        """Both splits have one sum."""
        sums = float(self.by_parameter.sum()), float(self.leverage.sum())
        if abs(sums[0] - sums[1]) > SPLIT_TOLERANCE * max(*sums, 1.0):
            raise ValueError(f"parameters sum to {sums[0]:.8g} and examples to {sums[1]:.8g}; both are the total")

    @property
    def total(self) -> float:
        """MacKay's gamma, $sum s / (s + ridge)$ over the eigenvalues s of G; without a ridge the rank of J."""
        return float(self.leverage.sum())

    @property
    def by_example(self) -> xr.DataArray:
        """Leverage $h_n$ of every example, summed over its outputs: the parameters that it determines."""
        summed: xr.DataArray = self.leverage.sum("output").rename("leverage")
        return summed

    @checked
    def by_module(self, depth: int | None = None) -> xr.DataArray:
        """Sum determined parameters over each module, as `Allocation.by_module` does; they add up to `total`.

        Args:
            depth: names of a module's path that count; None for the modules that own the tensors.

        Returns:
            Parameters over "module", in their order.

        Raises:
            ValueError: depth is less than 1.

        """
        return module_sums(self.by_parameter, depth)

    def leave_one_out(self, residuals: ArrayLike) -> NDArray[np.float64]:
        """Residuals that examples would have if each were left out of the fit: $e_n / (1 - h_n)$.

        Exact for a model that is linear in its selected parameters and minimises $sum |e|^2 + N ridge |theta|^2$, where
        the penalty stays as it is when an example goes: $(1 - H_nn)^-1 e_n$ for all outputs of an example together. For
        other models they are those of the model linearised at its parameters.

        Args:
            residuals: $e = y - f(x)$ of the fit, (examples, outputs), or (examples,) for one output.

        Returns:
            The same shape; NaN for an example that decides its own prediction alone, so that none is left without it.

        Raises:
            ValueError: other shapes.

        """
        e, hat = np.asarray(residuals, dtype=float), self.hat.to_numpy()
        if e.shape != hat.shape[:2] and (e.shape != hat.shape[:1] or hat.shape[1] > 1):
            raise ValueError(
                f"residuals have shape {e.shape}; pass those of all examples and outputs, {hat.shape[:2]}, with the "
                "outputs of an example flattened"
            )
        rest = np.eye(hat.shape[1]) - hat
        alone = np.linalg.eigvalsh(rest)[:, 0] <= DECIDES
        rest[alone] = np.eye(hat.shape[1])
        found = np.linalg.solve(rest, e.reshape(hat.shape[:2])[..., None])[..., 0]
        found[alone] = np.nan
        return np.asarray(found.reshape(e.shape))

    def view(self) -> View:
        """The total, the parameter tensors, and the leverage of examples."""
        total, examples = self.total, self.by_example.to_numpy()
        names, values = self.parameter.to_numpy().tolist(), self.by_parameter.to_numpy()
        most = int(examples.argmax())
        ranked = np.sort(examples)[::-1]
        rows = [[str(n), f"{v:,.2f}", f"{v / total:.1%}" if total else ""] for n, v in zip(names, values, strict=True)]
        return self._view(
            title="Effective parameters",
            heading=f"{total:.6g} of {self.num_params} parameters",
            about="Parameters that the examples' outputs determine: constraints of the outputs, not of the function.",
            facts=[
                standing("exact"),
                Fact("determined", f"{total:.6g}", f"of {self.num_params} parameters"),
                Fact("by", f"{self.num_examples} examples", f"of {self.num_outputs} outputs"),
                Fact("ridge", f"{self.ridge:.3g}", "" if self.ridge else "(the total is a rank)"),
                Fact("mean leverage", f"{examples.mean():.3g}", "parameters per example"),
                Fact("largest leverage", f"{examples[most]:.3g}", f"of example {most}"),
            ],
            tables=[Table("parameter tensors", ["tensor", "determined", "share"], rows, values.tolist(), detail=True)],
            charts=[
                Chart(
                    "Leverage of examples, the largest first",
                    [Line("leverage", np.arange(1, len(ranked) + 1), ranked)],
                    Axis("examples", whole=True),
                    Axis("parameters", 0),
                )
            ],
            series={"by_parameter": dict(zip(map(str, names), values.tolist(), strict=True))},
            rows=("params",),
        )

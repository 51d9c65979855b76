"""One export of a model for all calls that follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from capalloc._graph.capture import export_once
from capalloc._model.complex_params import as_held
from capalloc._model.private_copy import unwrapped
from capalloc._model.problem import prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed


@checked
@undisturbed()
def export(model: nn.Module, inputs: Tensor | Iterable[Any]) -> ExportedProgram:
    """Export a model once: every function takes the program in its place, and captures nothing anew.

    The program runs in evaluation mode on any number of examples and has the operators of the path-energy rules
    (docs/theory.md, section 4, "Any graph"). It holds the model's own parameters and buffers: where training changes
    them in place, so do the answers of the program. Parameters keep their names; which of them require gradients is
    not kept, so `params=None` means all.

    Args:
        model: the module; it is left as it is.
        inputs: examples (examples, ...) as the functions take them; their shape and precision are the program's.

    Returns:
        A program of `torch.export`, which `torch.export.save` writes to a file that capalloc reads.

    Raises:
        ValueError: the model takes several inputs, or torch.export cannot capture it, or not for every number of
            examples.
        TypeError: the model is none, or takes or makes no tensors.

    """
    problem = prepare(model, inputs, None, "all", traced=True, by_input=True)
    if problem.layout is not None:
        raise ValueError("export takes models of one tensor of examples, not of several inputs or token ids")
    program = export_once(problem).program
    if program is None:
        raise ValueError(
            "torch.export cannot capture this model for any number of examples: pass a program of "
            "torch.export.export(model, (examples,)), which has one number of them, or the model itself"
        )
    model = unwrapped(model)
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    program.state_dict.update({name: as_held(own[name], held) for name, held in program.state_dict.items()})
    return program

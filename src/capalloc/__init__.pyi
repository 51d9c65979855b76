__version__: str

# rooms: reference architectures, the linear theory, the limit of depth, closed forms of gates, ...
from . import architectures as architectures
from . import callbacks as callbacks
from . import depth_limit as depth_limit
from . import design as design
from . import gates as gates
from . import linear as linear
from . import partitions as partitions
from . import results as results
from . import solvers as solvers

# everything at once
from ._audit.audit import audit

# architectures side by side, before training
from ._audit.rank_models import rank

# capacity: measured on examples, or propagated through the captured graph, which `export` captures once for many calls
from ._graph.export_model import export
from ._measure.measure import CapacityWarning, measure
from ._propagate.propagate import propagate, walk
from ._propagate.prune_scores import prune_scores
from ._settings import Run

# what activations and depth do to it
from ._decoupling.gate_decoupling import decoupling
from ._depth.apply_balance import balance
from ._depth.balance_depth import scaling
from ._depth.diagnose_depth import diagnose
from ._depth.locate_field import receptive_field
from ._depth.compare_gradients import shattering

# results: files, distances, one page
from .results.allocation import Allocation
from .results.comparison import correlation, total_variation
from .results.kinds import load
from .app.report.page import write_report

# the output Jacobian: Gram matrices (neural tangent kernel, Gauss-Newton), and the parameters that outputs determine
from ._derivatives.output_grams import output_gram
from ._measure.count_outputs import effective_parameters

# rules of new operators, and what goes wrong
from ._energy.rules import Call, UnsupportedOperatorError, rule
from ._runtime.heartbeat import RankError

__all__ = [
    "Allocation",
    "Call",
    "CapacityWarning",
    "RankError",
    "Run",
    "UnsupportedOperatorError",
    "audit",
    "balance",
    "correlation",
    "decoupling",
    "diagnose",
    "effective_parameters",
    "export",
    "load",
    "measure",
    "output_gram",
    "propagate",
    "prune_scores",
    "rank",
    "receptive_field",
    "rule",
    "scaling",
    "shattering",
    "total_variation",
    "walk",
    "write_report",
]

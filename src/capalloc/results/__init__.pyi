# drawing, loaded when first used
from . import card
from . import plots

from .allocation import Allocation
from .audit_findings import Audit, Finding
from .base import Result, Variable
from .comparison import correlation, total_variation
from .decoupling import Decoupling
from .diagnosis import Diagnosis
from .effective_parameters import EffectiveParameters
from .evolution import Evolution
from .kinds import load
from .law_of_walk import Walk
from .pruning import PruneScores
from .ranking import Ranking
from .receptive_field import Extent, ReceptiveField
from .scaling import Scaling
from .shattering import Shattering
from .view import View

__all__ = [
    "Allocation",
    "Audit",
    "Decoupling",
    "Diagnosis",
    "EffectiveParameters",
    "Evolution",
    "Extent",
    "Finding",
    "PruneScores",
    "Ranking",
    "ReceptiveField",
    "Result",
    "Scaling",
    "Shattering",
    "Variable",
    "View",
    "Walk",
    "card",
    "correlation",
    "load",
    "plots",
    "total_variation",
]

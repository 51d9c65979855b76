from .allocation import Allocation
from .base import Savable
from .comparison import correlation, total_variation
from .decoupling import Decoupling
from .diagnosis import Diagnosis
from .evolution import Evolution
from .kinds import Result, load
from .receptive_field import Extent, ReceptiveField
from .scaling import Scaling
from .shattering import Shattering

__all__ = [
    "Allocation",
    "Decoupling",
    "Diagnosis",
    "Evolution",
    "Extent",
    "ReceptiveField",
    "Result",
    "Savable",
    "Scaling",
    "Shattering",
    "correlation",
    "load",
    "total_variation",
]

"""Where a neural network spends its modelling capacity (Donier, 2019).

How many effective, independent parameters a model devotes to every input, region and layer.
"""
# ruff: isort: skip_file
# Names stand in groups, by what they are for.

# the result of every method, and how two of them compare
from capalloc.allocation import Allocation
from capalloc.results import Result, load
from capalloc.comparison import correlation, total_variation

# capacity: of linear models, measured, propagated
from capalloc.linear import linear_capacity
from capalloc.measure import CapacityWarning, mean_eigenvalue, measure, measure_ridges
from capalloc.stochastic.ridge import ridge_from_noise
from capalloc.heartbeat import RankError
from capalloc.propagate import Walk, propagate, walk

# rules of new operators for `propagate`
from capalloc.energy.rules import Call, UnsupportedOperatorError, rule

# how far activations decouple their outputs, and capacity at any decoupling
from capalloc.decoupling.gaussian import gaussian_decoupling, gaussian_gate_moment
from capalloc.decoupling.measured import decoupling, gate_moments
from capalloc.decoupling.moments import propagate_moments
from capalloc.decoupling.result import Decoupling

# where one output position looks
from capalloc.receptive_field import receptive_field
from capalloc.receptive_field_result import Extent, ReceptiveField

# what depth does: scaling, shattering, the limit, and advice
from capalloc import depth_limit
from capalloc.diagnosis import diagnose
from capalloc.diagnosis_result import Diagnosis
from capalloc.scaling import scaling
from capalloc.scaling_result import Scaling
from capalloc.shattering.compare import shattering
from capalloc.shattering.law import family_rates, gradient_correlation
from capalloc.shattering.result import Shattering

# Gram matrices of the output Jacobian: neural tangent kernel, Gauss-Newton
from capalloc.jacobian.gram import output_gram

# reference architectures by name, and results on one page
from capalloc import architectures
from capalloc.report import write_report

__all__ = [
    "Allocation",
    "Call",
    "CapacityWarning",
    "Decoupling",
    "Diagnosis",
    "Extent",
    "RankError",
    "ReceptiveField",
    "Result",
    "Scaling",
    "Shattering",
    "UnsupportedOperatorError",
    "Walk",
    "architectures",
    "correlation",
    "decoupling",
    "depth_limit",
    "diagnose",
    "family_rates",
    "gate_moments",
    "gaussian_decoupling",
    "gaussian_gate_moment",
    "gradient_correlation",
    "linear_capacity",
    "load",
    "mean_eigenvalue",
    "measure",
    "measure_ridges",
    "output_gram",
    "propagate",
    "propagate_moments",
    "receptive_field",
    "ridge_from_noise",
    "rule",
    "scaling",
    "shattering",
    "total_variation",
    "walk",
    "write_report",
]

"""The linear theory, docs/theory.md, section 1: capacity on any partition and metric, and the study of filters."""

from capalloc.linear.architectures import (
    dense_filter,
    dilated_stack,
    pooling_hierarchy,
    recurrent_filter,
    stacked_convolutions,
    strided_hierarchy,
)
from capalloc.linear.bases import Basis, fourier_basis, orthonormal_basis, principal_basis
from capalloc.linear.capacity import linear_capacity
from capalloc.linear.metrics import Covariance, Identity, LowRankPlusDiagonal, Metric, Stationary, Variances
from capalloc.linear.models import model_jacobian
from capalloc.linear.moments import estimate_covariance
from capalloc.linear.processes import (
    Process,
    autoregression,
    empirical,
    fractional_noise,
    sinusoids,
    white_noise,
)
from capalloc.linear.series import co2, sunspots
from capalloc.linear.study import Settings, linear_study
from capalloc.linear.study_plot import plot_study
from capalloc.linear.tasks import Prediction, prediction
from capalloc.linear.training import Trained, train

__all__ = [
    "Basis",
    "Covariance",
    "Identity",
    "LowRankPlusDiagonal",
    "Metric",
    "Prediction",
    "Process",
    "Settings",
    "Stationary",
    "Trained",
    "Variances",
    "autoregression",
    "co2",
    "dense_filter",
    "dilated_stack",
    "empirical",
    "estimate_covariance",
    "fourier_basis",
    "fractional_noise",
    "linear_capacity",
    "linear_study",
    "model_jacobian",
    "orthonormal_basis",
    "plot_study",
    "pooling_hierarchy",
    "prediction",
    "principal_basis",
    "recurrent_filter",
    "sinusoids",
    "stacked_convolutions",
    "strided_hierarchy",
    "sunspots",
    "train",
    "white_noise",
]

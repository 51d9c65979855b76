"""The linear theory, docs/theory.md, section 1: capacity on any partition and metric."""

from capalloc.linear.bases import Basis, fourier_basis, orthonormal_basis, principal_basis
from capalloc.linear.capacity import linear_capacity
from capalloc.linear.data_covariance import estimate_covariance
from capalloc.linear.filters import (
    dense_filter,
    dilated_stack,
    pooling_hierarchy,
    recurrent_filter,
    stacked_convolutions,
    strided_hierarchy,
)
from capalloc.linear.metrics import Covariance, Identity, LowRankPlusDiagonal, Metric, Stationary, Variances
from capalloc.linear.of_model import model_jacobian
from capalloc.linear.prediction_task import PredictionTask, prediction
from capalloc.linear.processes import Process, autoregression, empirical, fractional_noise, sinusoids, white_noise
from capalloc.linear.series import co2, sunspots
from capalloc.linear.training import Trained, train

__all__ = [
    "Basis",
    "Covariance",
    "Identity",
    "LowRankPlusDiagonal",
    "Metric",
    "PredictionTask",
    "Process",
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
    "model_jacobian",
    "orthonormal_basis",
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

"""How a layer applies its effective weights: one class for each kind of operator, shared by the methods."""

from fastlip.nn.applications.application import Application
from fastlip.nn.applications.dense import Dense
from fastlip.nn.applications.exponential import ExponentialConvolution
from fastlip.nn.applications.frequency import FrequencyConvolution
from fastlip.nn.applications.kernel import KernelConvolution
from fastlip.nn.applications.residual import ResidualConvolution, ResidualDense
from fastlip.nn.applications.sandwich import SandwichConvolution, SandwichDense
from fastlip.nn.applications.transposed import TransposedConvolution

__all__ = [
    "Application",
    "Dense",
    "ExponentialConvolution",
    "FrequencyConvolution",
    "KernelConvolution",
    "ResidualConvolution",
    "ResidualDense",
    "SandwichConvolution",
    "SandwichDense",
    "TransposedConvolution",
]

"""Published checkpoints: output and input gradient of the golden vectors, and clear errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fastlip
from fastlip.official import METHODS

DATA = Path(__file__).parent / "data" / "official"
# Relative to the largest entry; where the published code iterates, its own result is less exact.
TOLERANCE = dict.fromkeys(METHODS, 1e-4) | {"aol": 1e-5, "sll": 1e-5, "cayley": 1e-5}


def load(method, dtype=torch.float32):
    with np.load(DATA / f"{method}.npz") as file:
        arrays = dict(file)
    state = {key: torch.from_numpy(arrays[key]).to(dtype) for key in arrays if key.startswith("state/")}
    return {key.removeprefix("state/"): value for key, value in state.items()}, arrays


def check(model, arrays, tolerance, dtype=torch.float32):
    x = torch.from_numpy(arrays["input"]).to(dtype).requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    for name, value in (("output", y), ("grad_input", gradient)):
        error = np.abs(value.detach().numpy() - arrays[name]).max() / np.abs(arrays[name]).max()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_golden_vectors(method, dtype):
    state, arrays = load(method, dtype)
    model = fastlip.load_official(state, method)
    assert not model.training
    check(model, arrays, TOLERANCE[method], dtype)


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_model_reloads_its_own_state_dict(method):
    state, arrays = load(method)
    model = fastlip.load_official(state, method)
    again = fastlip.load_official(state, method)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.mul_(0.5)
    again.load_state_dict(model.state_dict())
    check(again, arrays, TOLERANCE[method])


def test_cpl_with_recorded_scales_and_back_to_the_safe_one():
    state, arrays = load("cpl")
    recorded = {key: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("rescaling/")}
    model = fastlip.load_official(state | recorded, "cpl")
    check(model, arrays, 1e-5)
    published = fastlip.audit(model, (3, 32, 32)).bound
    assert published > 1.001
    for layer in model.modules():
        if hasattr(layer, "freeze_scale"):
            layer.freeze_scale(0)
    assert fastlip.audit(model, (3, 32, 32)).bound <= 1 + 1e-5


def test_errors_name_what_is_wrong():
    state, _ = load("aol")
    with pytest.raises(ValueError, match="method='eco': allowed are"):
        fastlip.load_official(state, "eco")
    with pytest.raises(ValueError, match="image_size=33"):
        fastlip.load_official(state, "aol", image_size=33)
    with pytest.raises(ValueError, match=r"FirstConv\.bias"):
        fastlip.load_official({"weight": torch.zeros(1)}, "aol")
    with pytest.raises(ValueError, match=r"missing \['raw_weight'\]"):
        fastlip.load_official({k: v for k, v in state.items() if "Block2.0.param" not in k}, "aol")
    with pytest.raises(ValueError, match=r"left over \['Block6.0'\]"):
        fastlip.load_official(state | {"Block6.0.bias": torch.zeros(3)}, "aol")
    key = "Block1.0.parametrizations.weight.original"
    with pytest.raises(ValueError, match=r"Block1\.0\.raw_weight: got shape"):
        fastlip.load_official(state | {key: state[key][:1]}, "aol")
    with pytest.raises(ValueError, match="FirstConv has no entry 'q', which 'sll' needs"):
        fastlip.load_official(state, "sll")

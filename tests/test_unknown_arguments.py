"""An argument that a layer, a loss or a network does not have: the error lists those that it has."""

import inspect

import pytest
import torch

import fastlip
from fastlip import losses
from fastlip import nn as lip

NETWORKS = ["bro_net", "lip_next", "sll_net"]


def built(package, base):
    """The classes of a package whose constructors have arguments by name."""
    for name in package.__all__:
        member = getattr(package, name)
        if inspect.isclass(member) and issubclass(member, base):
            kinds = {parameter.kind for parameter in inspect.signature(member).parameters.values()}
            if inspect.Parameter.VAR_POSITIONAL not in kinds:
                yield pytest.param(member, id=name)


CALLED = [*built(lip, torch.nn.Module), *built(losses, losses.Loss)]
CALLED += [pytest.param(getattr(fastlip.models, name), id=name) for name in NETWORKS]


@pytest.mark.parametrize("called", CALLED)
def test_an_unknown_argument_lists_those_that_are_known(called):
    known = inspect.signature(called).parameters
    with pytest.raises(TypeError) as caught:
        called(unknown=1)
    assert str(caught.value) == f"unknown: {called.__name__} has no such argument; allowed are {', '.join(known)}"


@pytest.mark.parametrize("network", ["lip_conv_net", "lip_res_net"])
def test_options_of_a_method_are_listed_with_those_of_the_network(network):
    with pytest.raises(
        TypeError, match=r"ranks: .* of 'bro' has no such argument \(perhaps rank is meant\)"
    ) as caught:
        fastlip.models.create_model(network, method="bro", image_size=8, ranks=2)
    for name in ("num_classes", "width", "rank", "padding_mode"):
        assert name in str(caught.value).partition("allowed are ")[2].split(", ")
    assert "kernel_size" not in str(caught.value), "the network chooses it"
    assert "terms" not in str(caught.value), "no option of BRO"
    fastlip.models.create_model(network, method="bro", image_size=8, width=8, rank=2)


def test_a_close_name_is_suggested():
    with pytest.raises(
        TypeError, match=r"learnabel: Scale has no such argument \(perhaps learnable is meant\); allowed"
    ):
        lip.Scale(2.0, learnabel=True)


def test_a_subclass_with_other_arguments_of_its_own():
    class Wide(lip.AOLLinear):
        def __init__(self, features, **options):
            super().__init__(features, 2 * features, **options)

    assert Wide(3, bias=False).bias is None
    with pytest.raises(TypeError, match=r"ranks: AOLLinear has no such argument"):
        Wide(3, ranks=2)

"""The string options of the networks, as types: an editor lists them and a type checker knows them.

Names of methods and networks are allowed that are not listed here: what counts at run time is
:data:`fastlip.models.METHODS` and :func:`fastlip.models.list_models`.
"""

from typing import Literal, TypedDict

from fastlip.nn.cpl import TrainingSigma
from fastlip.nn.soc import Exponential

MethodName = Literal["aoc", "aol", "bcop", "bro", "cayley", "cpl", "lot", "sll", "soc"]
OfficialMethodName = Literal["aol", "bcop", "cayley", "cpl", "lot", "sll", "soc"]
ModelName = Literal[
    "bro_net",
    "lip_conv_net",
    "lip_next",
    "lip_res_net",
    "plain_bro_net",
    "plain_lip_conv_net",
    "plain_lip_next",
    "plain_lip_res_net",
    "sll_net",
]
PretrainedName = Literal[
    "aoc_xs.digits",
    "aoc_xs.mnist",
    "aol_xs.digits",
    "aol_xs.mnist",
    "bcop_xs.digits",
    "bcop_xs.mnist",
    "bro_xs.digits",
    "bro_xs.mnist",
    "cayley_xs.digits",
    "cayley_xs.mnist",
    "cpl_xs.digits",
    "cpl_xs.mnist",
    "lot_xs.digits",
    "lot_xs.mnist",
    "sll_xs.digits",
    "sll_xs.mnist",
    "soc_xs.digits",
    "soc_xs.mnist",
]
Size = Literal["XS", "S", "M", "L"]
LipNextSize = Literal["XS", "S", "M", "L", "XL"]
OrthogonalName = Literal["bcop", "bro", "cayley", "lot", "soc"]
SLLSizeName = Literal["S", "M", "L", "XL"]


class MethodOptions(TypedDict, total=False):
    """The arguments that only some methods' convolutions have, apart from ``quasi_residual``.

    Attributes:
        epsilon: of AOL and SLL.
        eval_terms: of SOC.
        exponential: of SOC.
        inner_channels: of CPL and SLL.
        max_norm: of SOC.
        rank: of BRO.
        recompute: of CPL, SLL and SOC.
        ridge: of LOT.
        steps: of LOT.
        terms: of SOC.
        training_sigma: of CPL.

    Example:
        >>> options: fastlip.models.MethodOptions = {"rank": 0.5}
        >>> sizes = {"width": 8, "depth": 2, "features": 16, "dense_layers": 1}
        >>> fastlip.models.lip_res_net("bro", "XS", image_size=8, **sizes, **options).blocks[0].rank
        0.5
    """

    epsilon: float
    eval_terms: int | None
    exponential: Exponential
    inner_channels: int | None
    max_norm: float | None
    rank: float
    recompute: bool | None
    ridge: float | None
    steps: int | None
    terms: int
    training_sigma: TrainingSigma


class LayerOptions(MethodOptions, total=False):
    """The arguments that only some methods' convolutions have, for a network's ``**layer_options``.

    Attributes:
        quasi_residual: of the orthogonal layers and AOL; the others are those of :class:`MethodOptions`.

    Example:
        >>> options: fastlip.models.LayerOptions = {"terms": 4}
        >>> fastlip.models.lip_conv_net("soc", width=8, image_size=4, **options).stem[0].terms
        4
    """

    quasi_residual: bool | float

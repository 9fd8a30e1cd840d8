"""The reading of machine code by tools/gpu/sass.py, and what it says of the mixing of spectral_conv."""

import sys
from pathlib import Path
from unittest import mock

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
import launches
import sass

TEXT = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R3], [R4.64] ;
        /*0020*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        /*0030*/              @!P0 FFMA R1, R2, R3, R4 ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   BRA `(.L_x_1) ;
.L_x_1:
        /*0060*/                   EXIT ;
"""


def test_the_loop_and_its_products_are_found():
    (body,) = sass.loops(TEXT)
    assert [instruction.split(".")[0].split()[0] for instruction in body] == ["LDGSTS", "HMMA", "FFMA", "BRA"]
    found = sass.summary(body)
    assert (found["instructions"], found["HMMA"], found["FFMA"], found["LDGSTS"]) == (4, 1, 1, 1)
    assert found["bound"] == f"{(2048 + 64) / 4 * sass.SCHEDULERS * sass.CLOCK / 1e12:.1f} TFLOP/s"


def test_flops_of_products():
    assert sass.flops("HGMMA.64x16x8.F32.TF32 R24, gdesc[UR8], R24") == 2 * 64 * 16 * 8 // 4
    assert sass.flops("HMMA.16816.F32 R4, R8, R12, R4") == 2 * 16 * 8 * 16
    assert sass.flops("DMMA.8x8x4 R4, R8, R12, R4") == sass.flops("DMMA.884 R4, R8, R12, R4") == 512
    assert sass.flops("IADD3 R1, R2, R3, RZ") == 0


def product_launch():
    """The mixing of spectral_conv as networks launch it, of images that are channels-last."""
    sizes = (32, 32, 32, 1)
    strides = (32, 32, 32, 32, 1, 1, 32, 32, 32, 32, 32, 32, 32, 32, 1)
    arguments = [launches.Argument("float32", True)] * 3 + [launches.Argument("", n) for n in sizes + strides]
    constants = {"COLUMNS": 32, "PRECISION": "tf32x3", "ROWS": 64, "SIGN_A": 1, "SIGN_B": -1, "TERMS": 16}
    module = "fastlip.kernels.spectral_conv.triton_kernels"
    return launches.Recorded(module, "_product_kernel", tuple(arguments), tuple(sorted(constants.items())), 4)


@pytest.fixture
def loop_on():
    """The main loop of a launch that is compiled for a target."""
    triton = pytest.importorskip("triton", minversion="3.6")
    if triton.knobs.runtime.interpret:
        pytest.skip("Triton's interpreter is active")
    with mock.patch.dict(vars(triton.runtime.driver)):
        yield lambda launch, target: sass.loops(sass.disassembled(launches.binary(launch, target).asm["cubin"]))[0]


def test_issuing_leaves_the_mixing_this_much(loop_on):
    """A budget of a step; the bound is above a third of what an H100 reaches in TF32."""
    found = sass.summary(loop_on(product_launch(), 90), 3)
    assert found["HGMMA"] == 24
    assert found["instructions"] <= 310
    assert found["BAR"] <= 2
    assert float(found["bound"].split()[0]) > 165


def test_tiles_that_warp_groups_share_are_over_the_budget(loop_on):
    """Of eight warps, each group of four multiplies 16 columns only, and waits for the other."""
    found = sass.summary(loop_on(product_launch()._replace(num_warps=8), 90), 3)
    assert found["BAR"] > 2
    assert float(found["bound"].split()[0]) < 165

"""The reading of machine code by tools/gpu/sass.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
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

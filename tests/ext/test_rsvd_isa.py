"""The instruction sets that this machine does not choose by itself, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_IN_A_PROCESS = """
import sys
sys.path.append(sys.argv[2])
import torch, artent_ext
from rsvd_samples import FAMILIES, departure, matrix, spectral_error
assert artent_ext.build_info()["isa"] == sys.argv[1], artent_ext.build_info()
for m, n in ((90, 61), (61, 90), (37, 37), (200, 1), (1, 200), (5, 3)):
    for name in ("fast", "exact low rank", "zero", "repeated"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            A = matrix(FAMILIES[name](min(m, n)), m, n, (2,)).to(dtype)
            unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
            for k in (1, 5, 13, 48):
                U, S, Vh, residual, _ = artent_ext.rsvd(A, k)
                values = torch.linalg.svdvals(A.double())
                optimal = values[:, k] if k < min(m, n) else torch.zeros(2)
                rounding = 32 * unit * values[:, 0]
                where = (m, n, name, dtype, k)
                assert (spectral_error(A, U, S, Vh) <= 1.2 * optimal + rounding).all(), where
                limit = 1e-12 if dtype == torch.float64 else 1e-5
                assert departure(U) <= limit and departure(Vh.mT) <= limit, where
                difference = A.double() - (U.double() * S.double()[:, None]) @ Vh.double()
                torch.testing.assert_close(
                    residual, difference.square().sum((1, 2)), rtol=1e-2, atol=rounding.square().max().item()
                )
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets_give_as_good_answers(isa):
    environment = {**os.environ, "ARTENT_ISA": isa}
    probe = "import artent_ext; print(artent_ext.build_info()['isa'])"
    chosen = subprocess.run([sys.executable, "-c", probe], check=True, env=environment, capture_output=True, text=True)
    if chosen.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    folder = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", _IN_A_PROCESS, isa, folder], check=True, env=environment)

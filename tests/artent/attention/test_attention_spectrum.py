import math

import pytest
import torch
from artent.attention import spectral_entropy
from artent.attention.spectrum import prefix_entropies


def svd_entropy(A):
    p = torch.linalg.svdvals(A.double()).square()
    p = p / p.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1)


def causal(*shape, scale=2.0):
    logits = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits.masked_fill(torch.ones(shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)


CLOSED_FORMS = {
    "every token on itself": (torch.eye(17), math.log(17)),
    "every token on the first": (torch.eye(9)[:1].expand(9, 9), 0.0),
    "two blocks of equal weight": (torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)) / 4, math.log(2)),
    "one row": (torch.rand(1, 5) + 0.1, 0.0),
}


@pytest.mark.parametrize("case", CLOSED_FORMS)
def test_closed_forms(case):
    A, want = CLOSED_FORMS[case]
    assert spectral_entropy(A).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (5, 64), (64, 5), (1, 1), (0, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_singular_values(shape, dtype):
    A = torch.rand(shape, generator=torch.Generator().manual_seed(0)).softmax(-1).to(dtype)
    torch.testing.assert_close(spectral_entropy(A), svd_entropy(A), atol=1e-10, rtol=0)


@pytest.mark.parametrize("row_normalised", [False, True])
def test_prefixes_from_one_gram_matrix(row_normalised):
    A, sizes = causal(3, 48, 48), (1, 7, 30, 48)
    got = prefix_entropies(A, sizes, row_normalised=row_normalised)
    scaled = A / A.norm(dim=-1, keepdim=True) if row_normalised else A
    want = torch.stack([svd_entropy(scaled[..., :T, :T]) for T in sizes])
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


BAD = {
    "integers": (torch.ones(3, 3, dtype=torch.long), TypeError, "int64"),
    "no tensor": ([[1.0]], TypeError, "list"),
    "a vector": (torch.ones(3), ValueError, r"\(3,\)"),
    "an empty side": (torch.ones(2, 0, 3), ValueError, r"\(2, 0, 3\)"),
    "NaN": (torch.full((3, 3), torch.nan), ValueError, "NaN"),
    "a zero matrix": (torch.eye(3)[None] * torch.tensor([1.0, 0.0])[:, None, None], ValueError, "all-zero"),
    "too long": (torch.ones(1).expand(4097, 4097), ValueError, "4097 tokens.*4096"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    A, error, match = BAD[case]
    with pytest.raises(error, match=match):
        spectral_entropy(A)

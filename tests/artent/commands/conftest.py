"""Small adapters and checkpoints as PEFT and transformers save them, and what is in them by definition."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from entropy_reference import entropies
from safetensors.torch import save_file

RANK = 4
SHAPES = {"self_attn.q_proj": (24, 24), "self_attn.v_proj": (12, 24), "mlp.up_proj": (36, 24)}
PRIMES = {12: [3, 2, 2], 24: [3, 2, 2, 2], 36: [3, 3, 2, 2]}
LAYERS = (0, 2, 10)  # 10 comes after 2
IDLE = "model.layers.2.self_attn.v_proj"  # did not change


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folders ``adapter``, ``base``, ``tuned`` (the adapter merged into base, in float64) and ``zero``.

    ``updates`` and ``weights``: {module: matrix} of the adapter and of base, whose spectra are flat.
    """
    root, generator = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(0)
    adapter, base, updates = {}, {}, {}
    for layer in LAYERS:
        for name, (m, n) in SHAPES.items():
            module = f"model.layers.{layer}.{name}"
            B = torch.randn(m, RANK, generator=generator) * 0.6 ** torch.arange(RANK) * (module != IDLE)
            A = torch.randn(RANK, n, generator=generator)
            adapter[f"base_model.model.{module}.lora_A.weight"] = A
            adapter[f"base_model.model.{module}.lora_B.weight"] = B
            base[f"{module}.weight"] = torch.randn(m, n, generator=generator, dtype=torch.float64)
            updates[module] = 2.0 * B.double() @ A.double()
    tuned = {key: weight + updates[key.removesuffix(".weight")] for key, weight in base.items()}
    saved = {"adapter": ("adapter_model", adapter), "base": ("model", base), "tuned": ("model", tuned)}
    saved["zero"] = ("model", {key: torch.zeros_like(weight) for key, weight in base.items()})
    weights = {key.removesuffix(".weight"): weight for key, weight in base.items()}
    for folder, (name, tensors) in saved.items():
        (root / folder).mkdir()
        save_file(tensors, root / folder / f"{name}.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    folders = {folder: str(root / folder) for folder in saved}
    return SimpleNamespace(**folders, root=root, updates=updates, weights=weights, idle=IDLE, rank=RANK)


@pytest.fixture(scope="session")
def reference():
    """reference(ΔW, alpha): what a profile tells, in nats, by an SVD a bond in float64."""

    def of(update, alpha=1.0):
        m, n = update.shape
        lefts = np.cumprod(PRIMES[m] + PRIMES[n])[:-1]
        spectra = [np.linalg.svd(update.numpy().reshape(left, -1), compute_uv=False) ** 2 for left in lefts]
        S = entropies([p / p.sum() for p in spectra], alpha)
        cut = list(lefts).index(m)
        kept = np.cumsum(spectra[cut]) / spectra[cut].sum()
        ranks = {share: 1 + int((kept < share).sum()) for share in (0.5, 0.9, 0.99)}
        return SimpleNamespace(
            S=S, cut=S[cut], max=S.max(), valley=S.max() - S[cut], effective=np.exp(S[cut]), kept=kept, ranks=ranks
        )

    return of

"""A linear layer with MPS adapters beside it, as PEFT drives them: switch, merge, unmerge, delete."""

from __future__ import annotations

import warnings
from math import sqrt

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from artent.adapters.mps.product import AdaptedOutput, autocast_dtype
from artent.adapters.mps.shapes import factor_shapes
from artent.mps import MPSShape, contract
from artent.updates import LoRAUpdate, MPSUpdate

__all__ = ["Factor", "MPSLinear"]


class Factor(nn.Module):
    """The parameters of one factor: ``core_0`` … of a chain, or ``weight`` of a dense one."""

    def __init__(self, shape: MPSShape):
        super().__init__()
        self.shape = shape
        self.names = [f"core_{k}" for k in range(len(shape.sites))] if len(shape.sites) > 1 else ["weight"]
        for name, core in zip(self.names, shape.cores):
            self.register_parameter(name, nn.Parameter(torch.empty(core)))
        if self.names == ["weight"]:
            # PEFT has FSDP shard a leaf with a weight by itself and gather it when called; this one is only read.
            self.no_leaf = nn.Identity()

    @property
    def cores(self) -> list[nn.Parameter]:
        return [getattr(self, name) for name in self.names]

    @torch.no_grad()
    def reset(self, variance: float) -> None:
        """Random cores whose contraction has entries of mean zero and ``variance``, for any sites and bonds.

        A core off the carrier gets variance 1/χ of its bond towards the carrier, and so preserves the variance of
        what it is contracted with; the carrier gets ``variance``. Every core is uniform, like LoRA's A.
        """
        for at, core in enumerate(self.cores):
            toward = at - 1 if self.shape.carrier == "first" else at
            spread = variance if at == self.shape.carrier_index else 1 / self.shape.bonds[toward]
            nn.init.uniform_(core, -sqrt(3 * spread), sqrt(3 * spread))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The contracted factor (r, n)."""
        return contract([core.to(dtype) for core in self.cores], self.shape)

    def extra_repr(self):
        shape = self.shape
        chain = f", sites={shape.sites}, bonds={shape.bonds}, carrier={shape.carrier!r}" if shape.bonds else ", dense"
        return f"r={shape.rank}, n={shape.dimension}{chain}"


class MPSLinear(nn.Module, BaseTunerLayer):
    """``base_layer(x) + scaling · x Aᵀ Bᵀ`` for every active adapter; ``base_layer`` an ``nn.Linear`` or ``Conv1D``."""

    adapter_layer_names = ("artent_mps_A", "artent_mps_B")
    other_param_names = ("r", "lora_alpha", "scaling", "artent_mps_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config, r: int, lora_alpha: float, module: str):
        super().__init__()
        self.base_layer = base_layer
        self.artent_mps_A, self.artent_mps_B = nn.ModuleDict(), nn.ModuleDict()
        self.artent_mps_dropout = nn.ModuleDict()
        self.r, self.lora_alpha, self.scaling = {}, {}, {}
        self.merged_adapters = []
        self._disable_adapters = False
        base = self.get_base_layer()
        self.is_conv1d = isinstance(base, Conv1D)
        if self.is_conv1d:
            self.in_features, self.out_features = base.weight.shape
        else:  # what quantisation packs and sharding empties is the weight
            self.in_features, self.out_features = base.in_features, base.out_features
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, r, lora_alpha, module)

    def update_layer(self, adapter_name: str, config, r: int, lora_alpha: float, module: str) -> None:
        """Add an adapter, or replace the one of that name. ``module`` is the layer's name, for messages."""
        shape_A, shape_B = factor_shapes(config, r, self.in_features, self.out_features, module)
        self.artent_mps_A[adapter_name], self.artent_mps_B[adapter_name] = Factor(shape_A), Factor(shape_B)
        self.artent_mps_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        )
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.scaling[adapter_name] = lora_alpha / (sqrt(r) if config.use_rslora else r)
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_parameters(self, adapter_name: str, zero_B: bool = True) -> None:
        """A as LoRA's, B zero: its carrier core is, and the rest is random, so that its gradient is not zero."""
        self.artent_mps_A[adapter_name].reset(1 / (3 * self.in_features))
        self.artent_mps_B[adapter_name].reset(0 if zero_B else 1 / (3 * self.r[adapter_name]))

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for adapter in self.active_adapters:
            if adapter not in self.artent_mps_A:
                continue
            A, B = self.artent_mps_A[adapter], self.artent_mps_B[adapter]
            dtype = autocast_dtype(x) or A.cores[0].dtype
            given = self.artent_mps_dropout[adapter](x)
            result = AdaptedOutput.apply(
                given, result, self.scaling[adapter], dtype, A.shape, B.shape, *A.cores, *B.cores
            )
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """ΔW as the base layer stores its weight, in the adapter's dtype."""
        return self._delta(adapter).to(self.artent_mps_B[adapter].cores[0].dtype)

    def _delta(self, adapter):
        """ΔW in float32 or better, whatever the adapter's dtype."""
        A, B = self.artent_mps_A[adapter], self.artent_mps_B[adapter]
        dtype = torch.promote_types(B.cores[0].dtype, torch.float32)
        delta = self.scaling[adapter] * (B.matrix(dtype).mT @ A.matrix(dtype))
        return delta.mT if self.is_conv1d else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW of the adapters to the base weight, rounding to its dtype once.

        With ``safe_merge`` nothing is changed where the sum is not finite. Raises ValueError there, and for a base
        weight that is quantised.
        """
        adapters = self.to_merge(adapter_names)
        if adapters:
            self.get_base_layer().weight.copy_(self.merged_weight(adapters, safe_merge))
            self.merged_adapters.extend(adapters)

    def to_merge(self, adapter_names: list[str] | None = None) -> list[str]:
        """Those of the adapters, None for the active ones, that are here and not merged. Raises as ``merge`` does."""
        adapters = [a for a in check_adapters_to_merge(self, adapter_names) or () if a in self.artent_mps_A]
        if adapters:
            self._base_weight("merged")
        return adapters

    @torch.no_grad()
    def merged_weight(self, adapters: list[str], safe_merge: bool) -> Tensor:
        """The base weight with ΔW of ``adapters``, in float32 or better. Raises as ``merge`` does."""
        weight = self._base_weight("merged")
        merged = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for adapter in adapters:
            merged += self._delta(adapter)
            if safe_merge and not torch.isfinite(merged.to(weight.dtype)).all():
                raise ValueError(
                    f"NaN or Inf in the merged weights: adapter {adapter!r} is broken (a diverged run?) or overflows "
                    f"{weight.dtype}. Nothing was merged"
                )
        return merged

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged adapters out again; exact up to rounding in the base weight's dtype."""
        if not self.merged:
            warnings.warn("Already unmerged: there is nothing to do.", stacklevel=2)
            return
        weight = self._base_weight("unmerged")
        restored = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.artent_mps_A:
                restored -= self._delta(adapter)
        weight.copy_(restored)

    def _base_weight(self, done):
        weight = self.get_base_layer().weight
        if not weight.is_floating_point():
            raise ValueError(
                f"base weight: it is {weight.dtype}, and an adapter can be {done} in floating point only. Load the "
                "base model unquantised to merge, or keep the adapter beside it"
            )
        return weight

    def weight_update(self, adapters: list[str]) -> LoRAUpdate | MPSUpdate | None:
        """ΔW (m, n) of ``adapters`` by its factors, the live parameters: cores for one, a sum for several."""
        adapters = [a for a in adapters if a in self.artent_mps_A]
        if len(adapters) == 1:
            A, B = (factors[adapters[0]] for factors in (self.artent_mps_A, self.artent_mps_B))
            A, B = (factor.cores if factor.shape.bonds else factor.weight for factor in (A, B))
            return MPSUpdate(B, A, self.scaling[adapters[0]])
        if not adapters:
            return None
        dtype = torch.promote_types(self.artent_mps_A[adapters[0]].cores[0].dtype, torch.float32)
        B = [self.scaling[a] * self.artent_mps_B[a].matrix(dtype).mT for a in adapters]
        A = [self.artent_mps_A[a].matrix(dtype) for a in adapters]
        return LoRAUpdate(torch.cat(B, 1), torch.cat(A))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's ``convert_to_lora`` reads ``get_delta_weight`` as outputs × inputs. ``artent`` has an exact one."""
        return not self.is_conv1d

    def __repr__(self):
        return f"artent_mps.{super().__repr__()}"

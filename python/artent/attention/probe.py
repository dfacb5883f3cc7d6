"""What is measured inside the attention function, layer by layer: numbers are kept, no matrices."""

import torch

from artent.attention.spectrum import prefix_entropies, rounding
from artent_ext import attention_spectral_entropy, attention_stats, reference

# Heads of a text are measured in groups that take about this much memory.
_GROUP_BYTES = 256 << 20
# Exact: of a group some six T×T float64 arrays live at once: logits, mask, A, A Aᵀ, the eigensolver's copy.
_ARRAYS = 6
# Streamed: the Krylov space of T×rank·steps, and beside it some eight blocks of T×rank.
_BLOCKS = 8


class Probe:
    """Called by the attention function in every layer, with what defines its matrix; ``plan`` says what is wanted."""

    def __init__(self, real, plan, progress=None):
        self.real, self.plan, self.progress = real, plan, progress
        self.measured, self.seen, self.failed = {}, [], None

    def __call__(self, module, query, key, *, attn_mask, key_range, is_causal, scale, softcap):
        layer = module.layer_idx
        self.seen.append(layer)
        if self.failed is not None or (self.plan.layers is not None and layer not in self.plan.layers):
            return
        try:
            self._measure(layer, query, key, attn_mask, key_range, is_causal, scale, softcap)
        except Exception as error:  # told after the forward, in which other processes may take part
            self.failed = error

    def _measure(self, layer, query, key, attn_mask, key_range, is_causal, scale, softcap):
        if not query.shape[2] == key.shape[2] == self.real.shape[1]:
            raise ValueError(
                f"layer {layer} attends from {query.shape[2]} to {key.shape[2]} tokens, inputs hold "
                f"{self.real.shape[1]}: virtual tokens (prompt or prefix tuning) are not supported"
            )
        numbers = {"scale": query.shape[-1] ** -0.5 if scale is None else scale, "softcap": softcap}
        visible = {"attn_mask": attn_mask, "key_range": key_range, "is_causal": is_causal}
        stats = attention_stats(query, key, enable_gqa=query.shape[1] != key.shape[1], **visible, **numbers)
        real = self.real[:, None].to(stats.lse.device)
        counted = real & (stats.lse > -torch.inf)  # a row without a key: no mean
        self._check_rows(layer, stats.lse, real)
        means = [_mean(value, counted).double().cpu() for value in stats]
        s_ext = [self._spectra(layer, text, query, key, visible, numbers) for text in range(len(self.real))]
        self.measured[layer] = (*torch.stack(s_ext, 2), *means)
        if self.progress is not None:
            self.progress(layer)

    @staticmethod
    def _check_rows(layer, lse, real):
        real = real.expand_as(lse)
        if not (lse[real] < torch.inf).all():  # false for NaN
            raise ValueError(f"attention of layer {layer} holds NaN: the model's queries or keys are not finite")
        if torch.isneginf(lse[real]).any():
            raise ValueError(f"layer {layer} leaves a real token without a visible key: its row has no state")

    def _spectra(self, layer, text, query, key, visible, numbers):
        """S_ext of one text, its standard error and its bounds: (4, lengths, heads)."""
        plan = self.plan
        heads, group = query.shape[1], query.shape[1] // key.shape[1]
        found = torch.full((4, len(plan.lengths), heads), torch.nan, dtype=torch.float64)
        rows = self.real[text].nonzero()[:, 0].to(query.device)
        fitting = [i for i, length in enumerate(plan.lengths) if length <= len(rows)]
        if not fitting:
            return found
        rows = rows[plan.first : max(plan.lengths[i] for i in fitting)]
        visible = _among(rows, text, **visible)
        if not _is_causal(**visible):
            raise ValueError(
                f"layer {layer} attends to later tokens; the entanglement of prefixes needs a causal model"
            )
        q, k = query[text, :, rows], key[text, :, rows]

        def heads_of(h, T):
            return q[h, :T], k[h // group, :T], {**_leading(visible, h, T), **numbers}

        every = torch.arange(heads, device=query.device)
        exact = [i for i in fitting if plan.methods[i] == "exact"]
        if exact:
            sizes = [plan.lengths[i] - plan.first for i in exact]
            for h in every.split(max(1, _GROUP_BYTES // (_ARRAYS * 8 * max(sizes) ** 2))):
                found[:, torch.tensor(exact)[:, None], h.cpu()] = self._exact(*heads_of(h, max(sizes)), sizes)
        for i in fitting:
            if plan.methods[i] == "streamed":
                T = plan.lengths[i] - plan.first
                for h in every.split(self._group(T, query)):
                    seeds = plan.seed + layer * heads + h
                    found[:, i, h.cpu()] = self._streamed(*heads_of(h, T), seeds)
        return found

    def _exact(self, query, key, options, sizes):
        """(4, sizes, heads) by A itself, query and key (heads, T, D)."""
        q, k = query.double(), key.double()
        diagonal = 0 if options.pop("is_causal") else None
        A = reference.attention_probabilities(q, k, diagonal=diagonal, **options)
        S = prefix_entropies(A, sizes, row_normalised=self.plan.variant == "row_normalised").cpu()
        logit = q.shape[-1] * abs(options["scale"]) * q.norm(dim=-1).amax(-1) * k.norm(dim=-1).amax(-1)
        width = torch.stack([rounding(T, logit.cpu()) for T in sizes])
        return torch.stack((S, torch.zeros_like(S), (S - width).clamp_min(0), S + width))

    def _streamed(self, query, key, options, seeds):
        """(4, heads) by products with A, query and key (heads, T, D); every head has random signs of its own."""
        plan, unit = self.plan, self.plan.variant == "row_normalised"
        found = attention_spectral_entropy(
            query[None],
            key[None],
            rank=plan.rank,
            steps=plan.steps,
            seed=seeds[None],
            row_normalised=unit,
            **options,
        )
        return torch.cat(found[:4]).cpu()

    def _group(self, T, query):
        """Heads at a time, for a memory of O(T·rank·steps) each."""
        columns = self.plan.rank * (self.plan.steps + _BLOCKS) + 2 * query.shape[-1]
        return max(1, _GROUP_BYTES // (max(4, query.element_size()) * columns * T))


def _among(rows, text, attn_mask, key_range, is_causal):
    """What one text's tokens ``rows`` (ascending) see of each other, numbered from 0 up."""
    if key_range is not None:  # what an interval holds of ascending rows is an interval of their numbers
        key_range = torch.searchsorted(rows, key_range[text, rows].to(rows.dtype))[None]
    if attn_mask is not None:
        attn_mask = attn_mask[text if len(attn_mask) > 1 else 0][:, rows][..., rows]
    is_causal = is_causal or (attn_mask is None and len(rows) == 1)
    return {"attn_mask": attn_mask, "key_range": key_range, "is_causal": is_causal}


def _leading(visible, h, T):
    """The same for the first T tokens and the heads h."""
    mask, ranges = visible["attn_mask"], visible["key_range"]
    if mask is not None:
        mask = mask[h if len(mask) > 1 else [0], :T, :T]
    return {**visible, "attn_mask": mask, "key_range": None if ranges is None else ranges[:, :T].clamp(max=T)}


def _is_causal(attn_mask, key_range, is_causal):
    if key_range is not None:
        own = torch.arange(key_range.shape[1], device=key_range.device)
        return bool((key_range[..., 1] <= own + 1).all())
    if attn_mask is None:
        return is_causal
    later = attn_mask.triu(1)
    if later.dtype == torch.bool:
        return not later.any()
    return not (later > -1e3).triu(1).any()  # e^-1000 is zero in float64


def _mean(value, counted):
    return value.where(counted, 0.0).sum(-1) / counted.sum(-1)

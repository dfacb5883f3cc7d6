// Which keys a query sees, for the kernels. Device code, no torch.
#pragma once

#include "../common/simt.h"
#include "attention.h"
#include "online_state.h"

namespace artent::attention {

// Keys begin … end − 1, all that the diagonal and the key range leave a query; none for a query past the last.
struct KeySpan {
  int64_t begin, end;
};

__device__ inline KeySpan key_span(const Shape& shape, const Visibility& v, int64_t b, int64_t h, int64_t i) {
  KeySpan span{0, i < shape.queries ? shape.keys : 0};
  if (i >= shape.queries) return span;
  if (v.has_diagonal && i + v.diagonal + 1 < span.end) span.end = i + v.diagonal + 1;
  if (v.key_range != nullptr) {
    const Strides4& strides = v.key_range_strides;
    const int64_t* range = v.key_range + b * strides.b + h * strides.h + i * strides.i;
    const int64_t begin = simt::global_load(range), end = simt::global_load(range + strides.j);
    if (begin > span.begin) span.begin = begin;
    if (end < span.end) span.end = end;
  }
  return span;
}

// s with the mask added; −∞ where query i may not see key j. Where `seen` is false the mask is not looked at.
template <class Real>
__device__ __forceinline__ Real masked_logit(const Visibility& v, bool seen, int64_t b, int64_t h, int64_t i, int64_t j,
                                             Real s) {
  if (!seen) return kHidden<Real>;
  if (v.mask_kind == MaskKind::none) return s;
  const int64_t at = b * v.mask_strides.b + h * v.mask_strides.h + i * v.mask_strides.i + j * v.mask_strides.j;
  if (v.mask_kind == MaskKind::additive) return s + simt::global_load(static_cast<const Real*>(v.mask) + at);
  return simt::global_load(static_cast<const uint8_t*>(v.mask) + at) != 0 ? s : kHidden<Real>;
}

}  // namespace artent::attention

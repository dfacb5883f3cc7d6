// Tensors to StatsForward and StatsBackward, for the CPU and CUDA files alike.
//
// People's mistakes are told in artent_ext/attention.py; these checks only keep a direct call of torch.ops.artent from
// reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "stats.h"

namespace artent::attention {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Strides4 strides_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline void check_shape(const Tensor& t, std::array<int64_t, 4> shape, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must be 4-d, got ", t.dim(), "-d");
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(t.size(d) == shape[d], name, ": size ", t.size(d), " at dimension ", d, ", expected ", shape[d]);
  }
}

inline ScalarType accumulator_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline StatsShape shape_of(const Tensor& query, const Tensor& key) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query and key must be 4-d");
  STD_TORCH_CHECK(query.scalar_type() == key.scalar_type(), "query and key must have one dtype");
  StatsShape s{query.size(0), query.size(1), key.size(1), query.size(2), key.size(2), query.size(3)};
  check_shape(key, {s.batch, s.key_heads, s.keys, s.dim}, "key");
  STD_TORCH_CHECK(s.key_heads > 0 && s.heads % s.key_heads == 0, "query heads must be a multiple of key heads");
  return s;
}

inline Visibility visibility_of(const StatsShape& s, ScalarType accumulator, const std::optional<Tensor>& mask,
                                const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal) {
  Visibility v{};
  v.has_diagonal = diagonal.has_value();
  v.diagonal = diagonal.value_or(0);
  if (key_range.has_value()) {
    check_shape(*key_range, {s.batch, s.heads, s.queries, 2}, "key_range");
    STD_TORCH_CHECK(key_range->scalar_type() == ScalarType::Long, "key_range must be int64");
    v.key_range = static_cast<const int64_t*>(key_range->const_data_ptr());
    v.key_range_strides = strides_of(*key_range);
  }
  if (mask.has_value()) {
    check_shape(*mask, {s.batch, s.heads, s.queries, s.keys}, "attn_mask");
    const bool boolean = mask->scalar_type() == ScalarType::Bool;
    STD_TORCH_CHECK(boolean || mask->scalar_type() == accumulator, "attn_mask must be bool or the accumulator's dtype");
    v.mask_kind = boolean ? MaskKind::boolean : MaskKind::additive;
    v.mask = mask->const_data_ptr();
    v.mask_strides = strides_of(*mask);
  }
  return v;
}

inline Tensor new_rows(const Tensor& query, ScalarType dtype) {
  const std::array<int64_t, 3> size{query.size(0), query.size(1), query.size(2)};
  return torch::stable::new_empty(query, {size.data(), size.size()}, dtype);
}

inline Tensor new_like(const Tensor& t) {
  const std::array<int64_t, 4> size{t.size(0), t.size(1), t.size(2), t.size(3)};
  return torch::stable::new_empty(t, {size.data(), size.size()});
}

// A row vector (B,H,Tq) of the accumulator's dtype, contiguous; null where absent. `keep` owns the copy.
inline const void* rows_pointer(const std::optional<Tensor>& t, const StatsShape& s, ScalarType dtype, Tensor& keep,
                                const char* name) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == s.batch && t->size(1) == s.heads && t->size(2) == s.queries, name,
                  " must be (B, H, T_q)");
  STD_TORCH_CHECK(t->scalar_type() == dtype, name, " must have the accumulator's dtype");
  keep = torch::stable::contiguous(*t);
  return keep.const_data_ptr();
}

}  // namespace artent::attention

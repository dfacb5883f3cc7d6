// Tensors to StatsForward and StatsBackward, for the CPU and CUDA files alike.
//
// People's mistakes are told in artent_ext/_arguments.py; these checks only keep a direct call of torch.ops.artent from
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

// What forward and backward share.
template <class Params>
void fill_inputs(Params& p, const Tensor& query, const Tensor& key, const std::optional<Tensor>& attn_mask,
                 const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal, double scale) {
  p.shape = shape_of(query, key);
  p.visibility = visibility_of(p.shape, accumulator_of(query), attn_mask, key_range, diagonal);
  p.scale = scale;
  p.query = query.const_data_ptr();
  p.query_strides = strides_of(query);
  p.key = key.const_data_ptr();
  p.key_strides = strides_of(key);
}

inline Tensor new_like(const Tensor& t) {
  const std::array<int64_t, 4> size{t.size(0), t.size(1), t.size(2), t.size(3)};
  return torch::stable::new_empty(t, {size.data(), size.size()});
}

// A forward call: the kernel's parameters and the tensors that they point into.
struct ForwardCall {
  StatsForward p{};
  Tensor lse, entropy, purity;

  ForwardCall(const Tensor& query, const Tensor& key, const std::optional<Tensor>& attn_mask,
              const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal, double scale)
      : lse(new_rows(query)), entropy(new_rows(query)), purity(new_rows(query)) {
    fill_inputs(p, query, key, attn_mask, key_range, diagonal, scale);
    p.lse = lse.mutable_data_ptr();
    p.entropy = entropy.mutable_data_ptr();
    p.purity = purity.mutable_data_ptr();
  }

 private:
  static Tensor new_rows(const Tensor& query) {
    STD_TORCH_CHECK(query.dim() == 4, "query must be 4-d, got ", query.dim(), "-d");
    const std::array<int64_t, 3> size{query.size(0), query.size(1), query.size(2)};
    return torch::stable::new_empty(query, {size.data(), size.size()}, accumulator_of(query));
  }
};

// A backward call, likewise; it owns contiguous copies of row vectors that were not contiguous.
struct BackwardCall {
  StatsBackward p{};
  Tensor grad_query, grad_key;

  BackwardCall(const std::optional<Tensor>& grad_lse, const std::optional<Tensor>& grad_entropy,
               const std::optional<Tensor>& grad_purity, const Tensor& query, const Tensor& key, const Tensor& lse,
               const Tensor& entropy, const Tensor& purity, const std::optional<Tensor>& attn_mask,
               const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal, double scale) {
    fill_inputs(p, query, key, attn_mask, key_range, diagonal, scale);
    const ScalarType dtype = accumulator_of(query);
    p.lse = rows(0, lse, dtype, "lse");
    p.entropy = rows(1, entropy, dtype, "entropy");
    p.purity = rows(2, purity, dtype, "purity");
    p.grad_lse = rows(3, grad_lse, dtype, "grad_lse");
    p.grad_entropy = rows(4, grad_entropy, dtype, "grad_entropy");
    p.grad_purity = rows(5, grad_purity, dtype, "grad_purity");
    grad_query = new_like(query);
    grad_key = new_like(key);
    p.grad_query = grad_query.mutable_data_ptr();
    p.grad_key = grad_key.mutable_data_ptr();
  }

 private:
  std::array<Tensor, 6> kept_;

  // A row vector (B,H,Tq), contiguous; null where absent.
  const void* rows(size_t slot, const std::optional<Tensor>& t, ScalarType dtype, const char* name) {
    if (!t.has_value()) return nullptr;
    const StatsShape& s = p.shape;
    STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == s.batch && t->size(1) == s.heads && t->size(2) == s.queries, name,
                    " must be (B, H, T_q)");
    STD_TORCH_CHECK(t->scalar_type() == dtype, name, " must have the accumulator's dtype");
    kept_[slot] = torch::stable::contiguous(*t);
    return kept_[slot].const_data_ptr();
  }
};

}  // namespace artent::attention

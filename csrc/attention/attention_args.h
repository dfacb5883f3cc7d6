// Tensors to the kernels' parameters, for the CPU and CUDA files alike.
//
// People's mistakes are told in artent_ext/_attention_arguments.py; these checks only keep a direct call of
// torch.ops.artent from reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "attention.h"

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

inline Tensor new_empty(const Tensor& like, std::array<int64_t, 4> size, ScalarType dtype) {
  return torch::stable::new_empty(like, {size.data(), size.size()}, dtype);
}

inline Shape shape_of(const Tensor& query, const Tensor& key) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query and key must be 4-d");
  STD_TORCH_CHECK(query.scalar_type() == key.scalar_type(), "query and key must have one dtype");
  Shape s{query.size(0), query.size(1), key.size(1), query.size(2), key.size(2), query.size(3)};
  check_shape(key, {s.batch, s.key_heads, s.keys, s.dim}, "key");
  STD_TORCH_CHECK(s.key_heads > 0 && s.heads % s.key_heads == 0, "query heads must be a multiple of key heads");
  return s;
}

inline Visibility visibility_of(const Shape& s, ScalarType accumulator, const std::optional<Tensor>& mask,
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

inline Logits logits_of(const Tensor& query, const Tensor& key, const std::optional<Tensor>& attn_mask,
                        const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal, double scale,
                        double softcap) {
  const Shape shape = shape_of(query, key);
  STD_TORCH_CHECK(softcap >= 0, "softcap must not be negative, got ", softcap);
  return {shape,
          visibility_of(shape, accumulator_of(query), attn_mask, key_range, diagonal),
          scale,
          softcap,
          query.const_data_ptr(),
          strides_of(query),
          key.const_data_ptr(),
          strides_of(key)};
}

// x (B,H or Hk,rows,c).
inline Columns columns_of(const Shape& s, const Tensor& x, int64_t rows, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4, name, " must be 4-d, got ", x.dim(), "-d");
  STD_TORCH_CHECK(x.size(1) == s.heads || x.size(1) == s.key_heads, name, ": ", x.size(1), " heads, expected ", s.heads,
                  " or ", s.key_heads);
  check_shape(x, {s.batch, x.size(1), rows, x.size(3)}, name);
  return {x.const_data_ptr(), strides_of(x), x.size(3), s.heads / x.size(1)};
}

// A row vector (B,H,Tq), contiguous.
inline Tensor rows_of(const Shape& s, const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == s.batch && t.size(1) == s.heads && t.size(2) == s.queries, name,
                  " must be (B, H, T_q)");
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must have the accumulator's dtype");
  return torch::stable::contiguous(t);
}

// A call: the kernel's parameters and the tensors that they point into.
struct ForwardCall {
  Forward p{};
  Tensor lse, entropy, purity, lse_low;
  std::optional<Tensor> out;

  ForwardCall(const Tensor& query, const Tensor& key, const std::optional<Tensor>& value,
              const std::optional<Tensor>& attn_mask, const std::optional<Tensor>& key_range,
              std::optional<int64_t> diagonal, double scale, double softcap)
      : lse(new_rows(query)), entropy(new_rows(query)), purity(new_rows(query)), lse_low(new_rows(query)) {
    p.a = logits_of(query, key, attn_mask, key_range, diagonal, scale, softcap);
    p.lse = lse.mutable_data_ptr();
    p.entropy = entropy.mutable_data_ptr();
    p.purity = purity.mutable_data_ptr();
    p.lse_low = lse_low.mutable_data_ptr();
    if (!value.has_value()) return;
    const Shape& s = p.a.shape;
    STD_TORCH_CHECK(value->scalar_type() == query.scalar_type(), "value must have query's dtype");
    p.value = columns_of(s, *value, s.keys, "value");
    out = new_empty(query, {s.batch, s.heads, s.queries, p.value.columns}, query.scalar_type());
    p.out = out->mutable_data_ptr();
  }

 private:
  static Tensor new_rows(const Tensor& query) {
    STD_TORCH_CHECK(query.dim() == 4, "query must be 4-d, got ", query.dim(), "-d");
    const std::array<int64_t, 3> size{query.size(0), query.size(1), query.size(2)};
    return torch::stable::new_empty(query, {size.data(), size.size()}, accumulator_of(query));
  }
};

struct ApplyCall {
  Apply p{};
  Tensor out;

  ApplyCall(const Tensor& query, const Tensor& key, const Tensor& x, const Tensor& lse,
            const std::optional<Tensor>& lse_low, bool transpose, const std::optional<Tensor>& attn_mask,
            const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal, double scale, double softcap)
      : kept_(lse), kept_low_(lse_low) {
    p.a = logits_of(query, key, attn_mask, key_range, diagonal, scale, softcap);
    const Shape& s = p.a.shape;
    const ScalarType accumulator = accumulator_of(query);
    p.x_is_accumulator = x.scalar_type() == accumulator;
    STD_TORCH_CHECK(p.x_is_accumulator || x.scalar_type() == query.scalar_type(),
                    "x must have query's dtype or the accumulator's");
    p.x = columns_of(s, x, transpose ? s.queries : s.keys, "x");
    STD_TORCH_CHECK(p.x.group == 1, "x must have a block for every query head");
    p.transpose = transpose;
    kept_ = rows_of(s, lse, accumulator, "lse");
    p.lse = kept_.const_data_ptr();
    if (lse_low.has_value()) {
      kept_low_ = rows_of(s, *lse_low, accumulator, "lse_low");
      p.lse_low = kept_low_->const_data_ptr();
    }
    out = new_empty(query, {s.batch, s.heads, transpose ? s.keys : s.queries, p.x.columns}, x.scalar_type());
    p.out = out.mutable_data_ptr();
  }

 private:
  Tensor kept_;
  std::optional<Tensor> kept_low_;
};

struct BackwardCall {
  Backward p{};
  Tensor grad_query, grad_key, grad_value;

  BackwardCall(const std::optional<Tensor>& grad_out, const std::optional<Tensor>& value,
               const std::optional<Tensor>& delta, const std::optional<Tensor>& grad_lse,
               const std::optional<Tensor>& grad_entropy, const std::optional<Tensor>& grad_purity, const Tensor& query,
               const Tensor& key, const Tensor& lse, const Tensor& entropy, const Tensor& purity,
               const std::optional<Tensor>& lse_low, const std::optional<Tensor>& attn_mask,
               const std::optional<Tensor>& key_range, std::optional<int64_t> diagonal, double scale, double softcap,
               bool needs_value)
      : dtype_(accumulator_of(query)) {
    p.a = logits_of(query, key, attn_mask, key_range, diagonal, scale, softcap);
    const Shape& s = p.a.shape;
    p.lse = rows(0, lse, "lse");
    p.entropy = rows(1, entropy, "entropy");
    p.purity = rows(2, purity, "purity");
    p.grad_lse = rows(3, grad_lse, "grad_lse");
    p.grad_entropy = rows(4, grad_entropy, "grad_entropy");
    p.grad_purity = rows(5, grad_purity, "grad_purity");
    p.delta = rows(6, delta, "delta");
    p.lse_low = rows(7, lse_low, "lse_low");
    grad_query = new_empty(query, {s.batch, s.heads, s.queries, s.dim}, query.scalar_type());
    grad_key = new_empty(query, {s.batch, s.key_heads, s.keys, s.dim}, query.scalar_type());
    p.grad_query = grad_query.mutable_data_ptr();
    p.grad_key = grad_key.mutable_data_ptr();
    const bool through_value = grad_out.has_value();
    STD_TORCH_CHECK(through_value == value.has_value() && through_value == delta.has_value(),
                    "grad_out, value and delta come together");
    STD_TORCH_CHECK(through_value || !needs_value, "grad_value needs grad_out and value");
    std::array<int64_t, 4> shape{0, 0, 0, 0};
    if (through_value) {
      STD_TORCH_CHECK(grad_out->scalar_type() == query.scalar_type() && value->scalar_type() == query.scalar_type(),
                      "grad_out and value must have query's dtype");
      p.value = columns_of(s, *value, s.keys, "value");
      p.grad_out = columns_of(s, *grad_out, s.queries, "grad_out");
      check_shape(*grad_out, {s.batch, s.heads, s.queries, p.value.columns}, "grad_out");
      if (needs_value) shape = {s.batch, value->size(1), s.keys, p.value.columns};
    }
    grad_value = new_empty(query, shape, query.scalar_type());
    if (needs_value) p.grad_value = grad_value.mutable_data_ptr();
  }

 private:
  ScalarType dtype_;            // of row vectors
  std::array<Tensor, 8> kept_;  // contiguous copies of row vectors that were not

  // Null where absent.
  const void* rows(size_t slot, const std::optional<Tensor>& t, const char* name) {
    if (!t.has_value()) return nullptr;
    kept_[slot] = rows_of(p.a.shape, *t, dtype_, name);
    return kept_[slot].const_data_ptr();
  }
};

}  // namespace artent::attention

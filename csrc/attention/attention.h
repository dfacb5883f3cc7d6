// Softmax attention as a matrix A = softmax(s), s = cap(scale·QKᵀ) + mask, that is streamed and never stored: the
// statistics of its rows (lse, Shannon entropy, purity), its products, their gradients. docs/math.md §4.
//
// What the kernels see: pointers, strides in elements, sizes. No torch header.
#pragma once

#include <cstdint>

#include "../common/accumulator.h"

namespace artent::attention {

enum class MaskKind : int32_t { none = 0, boolean = 1, additive = 2 };

// Strides of a 4-D tensor in elements; 0 where it is broadcast.
struct Strides4 {
  int64_t b, h, i, j;
};

struct Shape {
  int64_t batch, heads, key_heads, queries, keys, dim;  // heads % key_heads == 0; query head h reads h / group
};

// Which keys a query may see. A key must pass all three tests.
struct Visibility {
  bool has_diagonal;  // key j is visible to query i iff j <= i + diagonal
  int64_t diagonal;
  const int64_t* key_range;  // [start, end) per query, or null; strides.j steps from start to end
  Strides4 key_range_strides;
  MaskKind mask_kind;
  const void* mask;       // bool (1 byte), or added to the logits in the accumulator's type
  Strides4 mask_strides;  // (B, H, Tq, Tk)
};

// What defines A. query (B,H,Tq,D) and key (B,Hk,Tk,D) in the inputs' type.
struct Logits {
  Shape shape;
  Visibility visibility;
  double scale;
  double softcap;  // s = softcap·tanh(scale·⟨q,k⟩ / softcap) before the mask; 0: no cap
  const void* query;
  Strides4 query_strides;
  const void* key;
  Strides4 key_strides;
};

// One column block that A or Aᵀ multiplies: (B, heads / group, rows, columns).
struct Columns {
  const void* data = nullptr;  // null where there is none
  Strides4 strides{};
  int64_t columns = 0;
  int64_t group = 1;  // query head h reads head h / group
};

// Row vectors (B,H,Tq) are contiguous, in the accumulator's type: float, or double for double input.
struct Forward {
  Logits a;
  Columns value;  // (B,H or Hk,Tk,c) in the inputs' type, or none
  void* out;      // A·value, contiguous (B,H,Tq,c), the inputs' type
  void* lse;
  void* entropy;
  void* purity;
  void* lse_low;  // what rounding took from lse (CPU)
};

// out = A·x, or Aᵀ·x when transposed; x has Tk (transposed: Tq) rows.
struct Apply {
  Logits a;
  Columns x;  // in the accumulator's or the inputs' type, as x_is_accumulator says
  bool x_is_accumulator;
  bool transpose;
  const void* lse;
  const void* lse_low;  // null where unknown
  void* out;            // contiguous (B,H,Tq or Tk,c), x's type
};

struct Backward {
  Logits a;
  const void* lse;
  const void* lse_low;  // null where unknown
  const void* entropy;
  const void* purity;
  const void* grad_lse;  // row vectors like lse; null where that output had no gradient
  const void* grad_entropy;
  const void* grad_purity;
  // The gradient that arrives at A·value: ∂/∂A = grad_out · valueᵀ. All null where there was none.
  Columns grad_out;   // (B,H,Tq,c), the inputs' type
  Columns value;      // (B,H or Hk,Tk,c), the inputs' type
  const void* delta;  // row vector Σ_c grad_out·out
  void* grad_query;   // contiguous, the inputs' type
  void* grad_key;
  void* grad_value;  // contiguous, shaped like value; null where nobody asked
};

}  // namespace artent::attention

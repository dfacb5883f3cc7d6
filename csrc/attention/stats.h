// Row statistics of softmax attention, streamed over keys: lse, Shannon entropy, purity. docs/math.md §4.
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

struct StatsShape {
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

// Strides: query (B,H,Tq,D), key (B,Hk,Tk,D). Row vectors (B,H,Tq) are contiguous.
struct StatsForward {
  StatsShape shape;
  Visibility visibility;
  double scale;
  const void* query;
  Strides4 query_strides;
  const void* key;
  Strides4 key_strides;
  void* lse;  // float, or double for double input
  void* entropy;
  void* purity;
};

struct StatsBackward {
  StatsShape shape;
  Visibility visibility;
  double scale;
  const void* query;
  Strides4 query_strides;
  const void* key;
  Strides4 key_strides;
  const void* lse;
  const void* entropy;
  const void* purity;
  const void* grad_lse;  // row vectors like lse; null where that output had no gradient
  const void* grad_entropy;
  const void* grad_purity;
  void* grad_query;  // contiguous, the inputs' type
  void* grad_key;
};

}  // namespace artent::attention

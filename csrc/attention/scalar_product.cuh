// Weights times rows (product.h) in scalar arithmetic (scalar_tile.cuh). Device code, no torch.
//
// A block writes kTile columns for kTile rows of the output and streams over the other input, so what it keeps in
// registers does not grow with the number of columns. Every output element is written once: no atomics, the same bits
// each run.
#pragma once

#include "launch.h"
#include "row_gradient.cuh"
#include "scalar_tile.cuh"

namespace artent::attention::scalar {

// A query's RowWeights, field by field.
template <class Real>
using RowTable = simt::SharedTile<Real, RowWeights<Real>::kFields, kTile>;

template <class Real>
__device__ void stage_row_weights(RowTable<Real> table, const Product& p, int64_t head, int64_t i0) {
  for (int n = threadIdx.x; n < kTile; n += kThreads) {
    RowWeights<Real> row{0, 0, 0, 0};
    if (i0 + n < p.a.shape.queries) row = row_weights<Real>(p, head * p.a.shape.queries + i0 + n);
    table.store(0, n, row.lse);
    table.store(1, n, row.offset);
    table.store(2, n, row.g_entropy);
    table.store(3, n, row.g_purity2);
  }
}

// The weight of a key with logit s under its mask, `logit` without it.
template <class Real>
__device__ Real weight(const Product& p, const RowWeights<Real>& row, Real s, Real logit, Real dP) {
  if (s == kHidden<Real>) return Real(0);  // lse may be −∞ too
  const Real log_p = s - row.lse, w = std::exp(log_p);
  if (!p.gradient || w == 0) return w;  // ln p may be infinite
  const Real ratio = p.a.softcap == 0 ? Real(0) : logit / Real(p.a.softcap);
  return w * (row.offset - row.g_entropy * log_p + row.g_purity2 * w + dP) * (1 - ratio * ratio);
}

template <class Element>
Launch product_launch(const Product& p) {
  using Real = Accumulator<Element>;
  const Shape& n = p.a.shape;
  return {n.batch * p.out_heads * tiles(p.owns_keys ? n.keys : n.queries) * tiles(p.x.columns), kThreads,
          2 * Square<Real>::kBytes + RowTable<Real>::kBytes + Spans::kBytes};
}

template <class Element, bool kOwnsKeys>
__global__ void __launch_bounds__(kThreads) product_kernel(const Product p) {
  using Real = Accumulator<Element>;
  const Logits& a = p.a;
  const Shape& n = a.shape;
  simt::SharedArena arena;
  const auto slab = arena.take<Square<Real>>();  // columns of x; before that, two slices
  const auto own_slice = slab.template slice<0, kDepth>();
  const auto other_slice = slab.template slice<kDepth, kDepth>();
  const auto w = arena.take<Square<Real>>();  // w(other row, own row)
  const auto table = arena.take<RowTable<Real>>();
  const auto spans = arena.take<Spans>();

  const int64_t own_rows = kOwnsKeys ? n.keys : n.queries, other_rows = kOwnsKeys ? n.queries : n.keys;
  const int64_t heads_each = n.heads / p.out_heads;
  int64_t block = blockIdx.x;
  const int64_t own0 = block % tiles(own_rows) * kTile;
  block /= tiles(own_rows);
  const int64_t column0 = block % tiles(p.x.columns) * kTile;
  block /= tiles(p.x.columns);
  const int64_t out_head = block % p.out_heads, b = block / p.out_heads;
  const int row = thread_row(), col = thread_col();

  int64_t h = out_head * heads_each;
  int64_t i0 = kOwnsKeys ? 0 : own0, j0 = kOwnsKeys ? own0 : 0;
  KeySpan own{0, 0};
  if (!kOwnsKeys) {
    own = stage_spans(spans, n, a.visibility, b, h, i0);
    stage_row_weights<Real>(table, p, b * n.heads + h, i0);
  }

  MicroTile<Real> out = {};
  const int64_t pairs = kOwnsKeys ? heads_each * tiles(n.queries) : tiles(n.keys);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (kOwnsKeys) {
      h = out_head * heads_each + pair / tiles(n.queries);
      i0 = pair % tiles(n.queries) * kTile;
      own = stage_spans(spans, n, a.visibility, b, h, i0);
      stage_row_weights<Real>(table, p, b * n.heads + h, i0);
    } else {
      j0 = pair * kTile;
    }
    if (!any_visible(own, j0)) continue;
    const int64_t other0 = kOwnsKeys ? i0 : j0;

    // A thread writes products of grad_out and value where it will write weights, and reads them itself.
    MicroTile<Real> s;
    const bool through_value = p.gradient && p.own_value.data != nullptr;
    if (through_value) {
      dot_products(own_slice, other_slice, Rows<Element>(p.own_value, b, h, own_rows), own0,
                   Rows<Element>(p.other_value, b, h, other_rows), other0, s);
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
        for (int c = 0; c < kThreadCols; ++c) w.store(col + c, row + r, s[r][c]);
    }
    dot_products(own_slice, other_slice, Rows<Element>(p.own, b, h, own_rows), own0,
                 Rows<Element>(p.other, b, h, other_rows), other0, s);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < kThreadCols; ++c) {
        const int i = kOwnsKeys ? col + c : row + r, j = kOwnsKeys ? row + r : col + c;
        const RowWeights<Real> query{table.load(0, i), table.load(1, i), table.load(2, i), table.load(3, i)};
        const KeySpan span{spans.load(0, i), spans.load(1, i)};
        const Real logit = capped(s[r][c] * Real(a.scale), Real(a.softcap));
        const Real masked = masked_logit(a.visibility, sees(span, j0 + j), b, h, i0 + i, j0 + j, logit);
        const Real dP = through_value ? w.load(col + c, row + r) : Real(0);
        w.store(col + c, row + r, weight(p, query, masked, logit, dP));
      }
    if (p.x_is_accumulator)
      stage<false>(slab, Rows<Real>(p.x, b, h, other_rows), other0, column0);
    else
      stage<false>(slab, Rows<Element>(p.x, b, h, other_rows), other0, column0);
    __syncthreads();
    multiply_accumulate(w, slab, out);
  }

#pragma unroll
  for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < kThreadCols; ++c) {
      const int64_t i = own0 + row + r, column = column0 + col + c;
      if (i >= own_rows || column >= p.x.columns) continue;
      const int64_t at = ((b * p.out_heads + out_head) * own_rows + i) * p.x.columns + column;
      const Real value = out[r][c] * Real(p.factor);
      if (p.x_is_accumulator)
        simt::global_store(static_cast<Real*>(p.out) + at, value);
      else
        simt::global_store(static_cast<Element*>(p.out) + at, static_cast<Element>(value));
    }
}

}  // namespace artent::attention::scalar

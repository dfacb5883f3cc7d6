// Statistics of the rows of A in scalar arithmetic (scalar_tile.cuh). Device code, no torch.
//
// Every output element is written once, by the block that owns it: no atomics, the same bits each run.
// Tile pairs in which no query sees a key (causal, packed texts) are passed over.
#pragma once

#include "launch.h"
#include "scalar_tile.cuh"

namespace artent::attention::scalar {

// A block owns a tile of queries of one head and streams over the keys.
template <class Element>
Launch stats_launch(const Shape& n) {
  using Real = Accumulator<Element>;
  return {n.batch * n.heads * tiles(n.queries), kThreads, 2 * Slice<Real>::kBytes + Spans::kBytes};
}

template <class Real>
__device__ OnlineState<Real> shuffle_xor(const OnlineState<Real>& state, int lane) {
  return {__shfl_xor_sync(0xffffffffu, state.m, lane), __shfl_xor_sync(0xffffffffu, state.L, lane),
          __shfl_xor_sync(0xffffffffu, state.t, lane), __shfl_xor_sync(0xffffffffu, state.L2, lane)};
}

template <class Element>
__global__ void __launch_bounds__(kThreads) stats_kernel(const Forward p) {
  using Real = Accumulator<Element>;
  const Logits& a = p.a;
  const Shape& n = a.shape;
  simt::SharedArena arena;
  const auto query_slice = arena.take<Slice<Real>>();
  const auto key_slice = arena.take<Slice<Real>>();
  const auto spans = arena.take<Spans>();

  const int64_t i0 = blockIdx.x % tiles(n.queries) * kTile;
  const int64_t head = blockIdx.x / tiles(n.queries);  // of all batch · heads
  const int64_t h = head % n.heads, b = head / n.heads;
  const Rows<Element> query({a.query, a.query_strides, n.dim, 1}, b, h, n.queries);
  const Rows<Element> key({a.key, a.key_strides, n.dim, n.heads / n.key_heads}, b, h, n.keys);
  const KeySpan own = stage_spans(spans, n, a.visibility, b, h, i0);
  const int row = thread_row(), col = thread_col();

  OnlineState<Real> state[kThreadRows];  // of this thread's columns; merged when all keys are through
  for (int64_t j0 = 0; j0 < n.keys; j0 += kTile) {
    if (!any_visible(own, j0)) continue;
    MicroTile<Real> s;
    dot_products(query_slice, key_slice, query, i0, key, j0, s);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const KeySpan span{spans.load(0, row + r), spans.load(1, row + r)};
      Real m = state[r].m;
#pragma unroll
      for (int c = 0; c < kThreadCols; ++c) {
        s[r][c] = masked_logit(a.visibility, sees(span, j0 + col + c), b, h, i0 + row + r, j0 + col + c,
                               capped(s[r][c] * Real(a.scale), Real(a.softcap)));
        m = s[r][c] > m ? s[r][c] : m;
      }
      state[r].shift_to(m);
#pragma unroll
      for (int c = 0; c < kThreadCols; ++c) state[r].add(s[r][c]);
    }
  }

#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    for (int lane = kRowThreads / 2; lane > 0; lane /= 2) state[r].merge(shuffle_xor(state[r], lane));
    if (col == 0 && i0 + row + r < n.queries) {
      const int64_t at = head * n.queries + i0 + row + r;
      simt::global_store(static_cast<Real*>(p.lse) + at, state[r].lse());
      simt::global_store(static_cast<Real*>(p.entropy) + at, state[r].entropy());
      simt::global_store(static_cast<Real*>(p.purity) + at, state[r].purity());
    }
  }
}

}  // namespace artent::attention::scalar

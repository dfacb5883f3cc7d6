// The kernels of attention_stats: forward, and backward for the query and for the key. Device code, no torch.
//
// Every output element is written once, by the block that owns it: no atomics, the same bits each run.
// Tile pairs in which no query sees a key (causal, packed texts) are passed over.
#pragma once

#include "tile.cuh"

namespace artent::attention {

struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

// A block owns a tile of queries of one head and streams over the keys.
template <class Element>
Launch forward_launch(const StatsShape& n) {
  using Real = Accumulator<Element>;
  return {n.batch * n.heads * tiles(n.queries), kThreads, 2 * Slice<Real>::kBytes + Spans::kBytes};
}

template <class Real>
__device__ OnlineState<Real> shuffle_xor(const OnlineState<Real>& state, int lane) {
  return {__shfl_xor_sync(0xffffffffu, state.m, lane), __shfl_xor_sync(0xffffffffu, state.L, lane),
          __shfl_xor_sync(0xffffffffu, state.t, lane), __shfl_xor_sync(0xffffffffu, state.L2, lane)};
}

template <class Element>
__global__ void __launch_bounds__(kThreads) stats_forward_kernel(const StatsForward p) {
  using Real = Accumulator<Element>;
  const StatsShape& n = p.shape;
  simt::SharedArena arena;
  const auto query_slice = arena.take<Slice<Real>>();
  const auto key_slice = arena.take<Slice<Real>>();
  const auto spans = arena.take<Spans>();

  const int64_t i0 = blockIdx.x % tiles(n.queries) * kTile;
  const int64_t head = blockIdx.x / tiles(n.queries);  // of all batch · heads
  const int64_t h = head % n.heads, b = head / n.heads;
  const Rows<Element> query(p.query, p.query_strides, b, h, n.queries, n.dim);
  const Rows<Element> key(p.key, p.key_strides, b, h / (n.heads / n.key_heads), n.keys, n.dim);
  const KeySpan own = stage_spans(spans, n, p.visibility, b, h, i0);
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
        s[r][c] = masked_logit(p.visibility, span, b, h, i0 + row + r, j0 + col + c, s[r][c] * Real(p.scale));
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

// A query's RowGradient, field by field.
template <class Real>
using RowGradients = simt::SharedTile<Real, 6, kTile>;

template <class Real>
__device__ void stage_row_gradients(RowGradients<Real> tile, const StatsBackward& p, int64_t head, int64_t i0) {
  const void* const fields[6] = {p.lse, p.entropy, p.purity, p.grad_lse, p.grad_entropy, p.grad_purity};
  for (int n = threadIdx.x; n < kTile; n += kThreads)
    for (int f = 0; f < 6; ++f) {
      Real value = 0;  // also for an output without a gradient
      if (fields[f] != nullptr && i0 + n < p.shape.queries)
        value = simt::global_load(static_cast<const Real*>(fields[f]) + head * p.shape.queries + i0 + n);
      tile.store(f, n, value);
    }
}

template <class Real>
__device__ RowGradient<Real> row_gradient(RowGradients<Real> tile, int i) {
  return {tile.load(0, i), tile.load(1, i), tile.load(2, i), tile.load(3, i), tile.load(4, i), tile.load(5, i)};
}

// dQ = scale · ds K when a block owns queries, dK = scale · dsᵀ Q when it owns keys (over all query heads that read
// the key head). A block writes a slab of kTile components for kTile rows of its own input and streams over the
// other one, so what it keeps in registers does not grow with the head dimension.
template <class Element, bool kOwnsKeys>
Launch backward_launch(const StatsShape& n) {
  using Real = Accumulator<Element>;
  const int64_t owners = kOwnsKeys ? n.key_heads * tiles(n.keys) : n.heads * tiles(n.queries);
  return {n.batch * owners * tiles(n.dim), kThreads,
          2 * Square<Real>::kBytes + RowGradients<Real>::kBytes + Spans::kBytes};
}

template <class Element, bool kOwnsKeys>
__global__ void __launch_bounds__(kThreads) stats_backward_kernel(const StatsBackward p) {
  using Real = Accumulator<Element>;
  const StatsShape& n = p.shape;
  simt::SharedArena arena;
  const auto slab = arena.take<Square<Real>>();  // components of the other input's rows; before that, two slices
  const auto own_slice = slab.template slice<0, kDepth>();
  const auto other_slice = slab.template slice<kDepth, kDepth>();
  const auto ds = arena.take<Square<Real>>();  // ds(other row, own row)
  const auto gradients = arena.take<RowGradients<Real>>();
  const auto spans = arena.take<Spans>();

  const int64_t own_rows = kOwnsKeys ? n.keys : n.queries, own_heads = kOwnsKeys ? n.key_heads : n.heads;
  const int64_t group = n.heads / n.key_heads;
  int64_t block = blockIdx.x;
  const int64_t own0 = block % tiles(own_rows) * kTile;
  block /= tiles(own_rows);
  const int64_t dim0 = block % tiles(n.dim) * kTile;
  block /= tiles(n.dim);
  const int64_t own_head = block % own_heads, b = block / own_heads;
  const int row = thread_row(), col = thread_col();

  int64_t h = kOwnsKeys ? own_head * group : own_head;
  int64_t i0 = kOwnsKeys ? 0 : own0, j0 = kOwnsKeys ? own0 : 0;
  KeySpan own{0, 0};
  if (!kOwnsKeys) {
    own = stage_spans(spans, n, p.visibility, b, h, i0);
    stage_row_gradients<Real>(gradients, p, b * n.heads + h, i0);
  }

  MicroTile<Real> grad = {};
  const int64_t pairs = kOwnsKeys ? group * tiles(n.queries) : tiles(n.keys);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (kOwnsKeys) {
      h = own_head * group + pair / tiles(n.queries);
      i0 = pair % tiles(n.queries) * kTile;
      own = stage_spans(spans, n, p.visibility, b, h, i0);
      stage_row_gradients<Real>(gradients, p, b * n.heads + h, i0);
    } else {
      j0 = pair * kTile;
    }
    if (!any_visible(own, j0)) continue;
    const Rows<Element> query(p.query, p.query_strides, b, h, n.queries, n.dim);
    const Rows<Element> key(p.key, p.key_strides, b, h / group, n.keys, n.dim);
    const Rows<Element>& other = kOwnsKeys ? query : key;
    const int64_t other0 = kOwnsKeys ? i0 : j0;

    MicroTile<Real> s;
    dot_products(own_slice, other_slice, kOwnsKeys ? key : query, own0, other, other0, s);
    constexpr int kQueries = kOwnsKeys ? kThreadCols : kThreadRows;
    constexpr int kKeys = kOwnsKeys ? kThreadRows : kThreadCols;
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const int i = q + (kOwnsKeys ? col : row);
      const RowGradient<Real> gradient = row_gradient<Real>(gradients, i);
      const KeySpan span{spans.load(0, i), spans.load(1, i)};
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        const int j = k + (kOwnsKeys ? row : col);
        const Real logit = s[kOwnsKeys ? k : q][kOwnsKeys ? q : k] * Real(p.scale);
        const Real masked = masked_logit(p.visibility, span, b, h, i0 + i, j0 + j, logit);
        ds.store(kOwnsKeys ? i : j, kOwnsKeys ? j : i, gradient.at(masked));
      }
    }
    stage<false>(slab, other, other0, dim0);
    __syncthreads();
    multiply_accumulate(ds, slab, grad);
  }

  Element* const out = static_cast<Element*>(kOwnsKeys ? p.grad_key : p.grad_query);
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < kThreadCols; ++c) {
      const int64_t i = own0 + row + r, d = dim0 + col + c;
      if (i < own_rows && d < n.dim)
        simt::global_store(out + ((b * own_heads + own_head) * own_rows + i) * n.dim + d,
                           static_cast<Element>(grad[r][c] * Real(p.scale)));
    }
}

}  // namespace artent::attention

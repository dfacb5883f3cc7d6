// Statistics of the rows of A, and A·value in the same pass, on tensor cores. Device code, no torch.
//
// A block owns a tile of queries and streams keys past it, and values. Every output element is written once, by the
// block that owns it: no atomics, the same bits each run. Key tiles that no query of the tile sees are not visited.
#pragma once

#include "launch.h"
#include "tensor_spans.cuh"

namespace artent::attention::tensor {

// kRowTiles · 16 query rows a warp, kKeys keys at once; kColumns of value, 0 for the statistics alone.
//
// A thread's registers hold kRowTiles · kKeys / 2 logits and kRowTiles · kColumns / 2 sums, of 255 in all. Two row
// tiles halve what a product reads from shared memory, which two blocks of one tile each would be bound by; float needs
// its fragments twice (big and small) and its own rows are twice as long.
template <class Element, int kColumns>
struct ForwardTile {
  static constexpr bool kHalf = sizeof(Element) == 2;
  static constexpr int kRowTiles = kHalf && kColumns <= 128 ? 2 : 1;
  static constexpr int kKeys = kHalf ? (kColumns <= 64 ? 64 : 32) : (kColumns <= 64 ? 64 : 32);
  static constexpr int kOwn = 16 * kRowTiles * kWarps;
};

struct ForwardParams {
  Forward f;
  Shares shares;  // of a tile: the workspace holds m, L, t, L₂ of every (share, row), then the sums relative to m
};

template <class Element, int kColumns>
Launch forward_launch(const Forward& f, int shares) {
  using Tile = ForwardTile<Element, kColumns>;
  const Shape& n = f.a.shape;
  return {
      n.batch * n.heads * divide_up(n.queries, Tile::kOwn) * shares, kThreads,
      16 * (Tile::kOwn * own_pitch<Element>(n.dim) + kRing * Tile::kKeys * kSlicePitch) + Spans<Tile::kOwn>::kBytes};
}
template <class Element, int kColumns>
int forward_shares(const Forward& f, int multiprocessors) {
  const Shape& n = f.a.shape;
  return shares_for(forward_launch<Element, kColumns>(f, 1).blocks,
                    divide_up(n.keys, ForwardTile<Element, kColumns>::kKeys), multiprocessors);
}
inline int64_t forward_workspace(const Forward& f, int shares) {  // floats
  const Shape& n = f.a.shape;
  return shares * n.batch * n.heads * n.queries * (4 + f.value.columns);
}

// Stands for an exponent of −∞, so that 0·x is 0 and not NaN.
constexpr float kVanishing = -200;
__device__ __forceinline__ float no_less_than_vanishing(float x) {
  return x < kVanishing ? kVanishing : x;  // NaN stays
}

__device__ __forceinline__ float quad_max(float x) {
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, x, lanes);
    x = other > x ? other : x;
  }
  return x;
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The row's state with one more tile's logits, which become e^{s − m}. Returns what earlier sums are multiplied by.
// m is the row's, the same in the four lanes that share it; L, t, L₂ are sums over this lane's keys.
template <class Element, int kTiles>
__device__ __forceinline__ float add_logits(OnlineState<float>& state, float (&s)[kTiles][4], int half) {
  float m = state.m;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; ++e) m = s[n][e] > m ? s[n][e] : m;
  m = quad_max(m);
  const float from = m == kHidden<float> ? 0.0f : m;  // nothing seen yet: every exponent is −∞, none NaN
  const float shift = no_less_than_vanishing(state.m - from), alpha = exponential<Element>(shift);
  state.m = m;
  state.t = alpha * (state.t + shift * state.L);
  state.L *= alpha;
  state.L2 *= alpha * alpha;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; ++e) {
      const float x = no_less_than_vanishing(s[n][e] - from), p = exponential<Element>(x);
      state.L += p;
      state.t += p * x;
      state.L2 += p * p;
      s[n][e] = p;
    }
  return alpha;
}

__device__ __forceinline__ void store_statistics(const Forward& f, int64_t at, const OnlineState<float>& row) {
  simt::global_store(static_cast<float*>(f.lse) + at, row.lse());
  simt::global_store(static_cast<float*>(f.entropy) + at, row.entropy());
  simt::global_store(static_cast<float*>(f.purity) + at, row.purity());
}

template <class Element, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const ForwardParams p) {
  using Tile = ForwardTile<Element, kColumns>;
  constexpr int kRowTiles = Tile::kRowTiles, kKeys = Tile::kKeys, kOwn = Tile::kOwn;
  const Logits& a = p.f.a;
  const Shape& n = a.shape;
  simt::SharedArena arena;
  const auto own = arena.panel(kOwn, own_pitch<Element>(n.dim));
  const auto ring = arena.panel(kRing * kKeys, kSlicePitch);
  const auto spans = arena.take<Spans<kOwn>>();

  // The last queries first: under a diagonal they have the most to do.
  const int tiles = int(divide_up(n.queries, kOwn));
  int64_t block = blockIdx.x;
  const int share = int(block % p.shares.count);
  block /= p.shares.count;
  const int i0 = (tiles - 1 - int(block % tiles)) * kOwn;
  const int64_t head = block / tiles, b = head / n.heads;
  const int h = int(head % n.heads);
  const Columns queries{a.query, a.query_strides, n.dim, 1}, keys{a.key, a.key_strides, n.dim, n.heads / n.key_heads};
  const int columns = int(p.f.value.columns);

  stage_spans(spans, 0, kOwn, n, a.visibility, b, h, i0);
  __syncthreads();
  const Hull hull =
      a.visibility.key_range == nullptr ? diagonal_hull(n, a.visibility, i0, kOwn) : staged_hull(spans, kOwn, n, i0);
  const int first = hull.begin / kKeys;
  const int count = hull.end > hull.begin ? divide_up(hull.end, kKeys) - first : 0;
  const int begin = first + int(int64_t(count) * share / p.shares.count);
  const int end = first + int(int64_t(count) * (share + 1) / p.shares.count);

  const int steps = depth_steps<Element>(n.dim), depth_slices = divide_up(steps, kSliceSteps);
  const int slices = depth_slices + (kColumns ? divide_up(columns, kPerSlice<Element>) : 0);
  int ahead = begin - 1, ahead_slice = slices;  // what is copied next
  int copy_stage = 0, work_stage = 0;           // slices of the ring
  const auto copy_ahead = [&] {
    if (ahead_slice == slices) ++ahead, ahead_slice = 0;
    if (ahead < end) {
      const bool of_value = kColumns && ahead_slice >= depth_slices;
      const int slice = of_value ? ahead_slice - depth_slices : ahead_slice, column = slice * kPerSlice<Element>;
      const int chunks = of_value ? divide_up(columns - column, 16) * int(sizeof(Element))
                                  : kStepChunks * (steps - kSliceSteps * slice);
      load_slice<kKeys>(ring.from(copy_stage * kKeys, kKeys), 0, chunks < kSliceChunks ? chunks : kSliceChunks,
                        Rows<Element>(of_value ? p.f.value : keys, b, h, n.keys), ahead * kKeys, column);
      ++ahead_slice;
    }
    simt::copy_commit();  // an empty group where nothing is left
    copy_stage = copy_stage + 1 == kRing ? 0 : copy_stage + 1;
  };
  if (begin < end) load_rows<kOwn>(own, Rows<Element>(queries, b, h, n.queries), i0);

  OnlineState<float> state[kRowTiles][2];
  Products<kRowTiles, kKeys> s;
  float out[kRowTiles][kColumns ? kColumns / 8 : 1][4];
  clear(out);
  clear(s);
  int tile = begin, slice = 0;  // what is being worked on
  for (int under_way = 0;;) {
    copy_ahead();
    if (under_way < kAhead) {
      if (++under_way < kAhead) continue;
    } else {
      const simt::SharedPanel here = ring.from(work_stage * kKeys, kKeys);
      if (slice < depth_slices) {
        multiply_rows<Element>(own, slice * kSliceChunks, here, steps - kSliceSteps * slice, s);
      } else if constexpr (kColumns > 0) {
        at_slice<Element, kColumns>(slice - depth_slices, columns, [&](auto first_tile, int left) {
          multiply_weights<Element, Weights::rounded, first_tile>(s, here, left, out);
        });
      }
      if (slice == depth_slices - 1) {
        const int j0 = tile * kKeys;
        const bool plain =
            hull.all_begin <= j0 && j0 + kKeys <= hull.all_end && a.visibility.mask_kind == MaskKind::none;
        mask_logits<false>(a, spans, 0, plain, b, h, i0, j0, s);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float alpha = add_logits<Element>(state[r][half], s[r], half);
            if constexpr (kColumns > 0) {
#pragma unroll
              for (int c = 0; c < kColumns / 8; ++c) {
                out[r][c][2 * half] *= alpha;
                out[r][c][2 * half + 1] *= alpha;
              }
            }
          }
      }
      if (++slice == slices) {
        slice = 0;
        ++tile;
        clear(s);
      }
      work_stage = work_stage + 1 == kRing ? 0 : work_stage + 1;
    }
    if (tile >= end) break;
    simt::copy_wait<kAhead - 1>();
    __syncthreads();
  }

  const int64_t rows = n.batch * n.heads * n.queries;
  float* const partial = p.shares.workspace + 4 * rows * p.shares.count;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      OnlineState<float> row = state[r][half];
      row.L = quad_sum(row.L);
      row.t = quad_sum(row.t);
      row.L2 = quad_sum(row.L2);
      const int i = i0 + product_row<kRowTiles>(r, 2 * half);
      if (i >= n.queries) continue;
      const int64_t at = head * n.queries + i;
      const bool alone = p.shares.count == 1;
      if (lane() % 4 == 0) {
        if (alone) {
          store_statistics(p.f, at, row);
        } else {
          const float fields[4] = {row.m, row.L, row.t, row.L2};
          for (int f = 0; f < 4; ++f) simt::global_store(p.shares.workspace + 4 * (share * rows + at) + f, fields[f]);
        }
      }
      if constexpr (kColumns > 0) {
        constexpr float kUnlift = 1 / kLift<Element, Weights::rounded>;
        const float factor = (alone ? (row.empty() ? 0.0f : 1 / row.L) : 1.0f) * kUnlift;
#pragma unroll
        for (int c = 0; c < kColumns / 8; ++c)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = product_column(c, e);
            if (column >= columns) continue;
            const float x = out[r][c][2 * half + e] * factor;
            if (alone)
              simt::global_store(static_cast<Element*>(p.f.out) + at * columns + column, Element(x));
            else
              simt::global_store(partial + (share * rows + at) * columns + column, x);
          }
      }
    }
}

// The shares of every row together, a row a warp.
template <class Element>
__global__ void __launch_bounds__(kThreads) merge_kernel(const ForwardParams p) {
  const Shape& n = p.f.a.shape;
  const int64_t rows = n.batch * n.heads * n.queries, row = int64_t(blockIdx.x) * kWarps + warp();
  if (row >= rows) return;
  const float* const states = p.shares.workspace;
  const auto state_of = [&](int share) {
    const float* at = states + 4 * (share * rows + row);
    return OnlineState<float>{simt::global_load(at), simt::global_load(at + 1), simt::global_load(at + 2),
                              simt::global_load(at + 3)};
  };
  OnlineState<float> all;
  for (int share = 0; share < p.shares.count; ++share) all.merge(state_of(share));
  if (lane() == 0) store_statistics(p.f, row, all);
  const int columns = int(p.f.value.columns);
  const float* const partial = states + 4 * rows * p.shares.count;
  for (int column = lane(); column < columns; column += 32) {
    float sum = 0;
    for (int share = 0; share < p.shares.count; ++share) {
      const float m = simt::global_load(states + 4 * (share * rows + row));
      if (m == kHidden<float>) continue;
      sum += std::exp(m - all.m) * simt::global_load(partial + (share * rows + row) * columns + column);
    }
    simt::global_store(static_cast<Element*>(p.f.out) + row * columns + column,
                       Element(all.empty() ? 0.0f : sum / all.L));
  }
}
inline Launch merge_launch(const Forward& f) {
  const Shape& n = f.a.shape;
  return {divide_up(n.batch * n.heads * n.queries, kWarps), kThreads, 0};
}

}  // namespace artent::attention::tensor

// What a tile of queries sees: every query's keys in shared memory, and what all and what any of them see. Device code.
#pragma once

#include "tensor_tile.cuh"
#include "visible.cuh"

namespace artent::attention::tensor {

// Key spans of kRows queries. Row 0 begins, row 1 ends; both lie in 0 … keys, and a query past the last sees nothing.
template <int kRows>
using Spans = simt::SharedTile<int, 2, kRows>;

__device__ __forceinline__ int clamp_key(int64_t j, const Shape& shape) {
  return int(j < 0 ? 0 : j < shape.keys ? j : shape.keys);
}

// At columns at … at + count − 1 of the tile: queries i0 …
template <class Tile>
__device__ __forceinline__ void stage_spans(Tile spans, int at, int count, const Shape& shape, const Visibility& v,
                                            int64_t b, int64_t h, int64_t i0) {
  for (int n = threadIdx.x; n < count; n += kThreads) {
    const KeySpan span = key_span(shape, v, b, h, i0 + n);
    spans.store(0, at + n, clamp_key(span.begin, shape));
    spans.store(1, at + n, clamp_key(span.end, shape));
  }
}

// No query of the tile sees a key outside begin … end − 1; every one sees all of all_begin … all_end − 1, the mask
// aside.
struct Hull {
  int begin, end, all_begin, all_end;
};

// Without a key range spans only grow from query to query.
__device__ __forceinline__ Hull diagonal_hull(const Shape& shape, const Visibility& v, int64_t i0, int count) {
  if (!v.has_diagonal) return {0, int(shape.keys), 0, int(shape.keys)};
  const int64_t last = i0 + count < shape.queries ? i0 + count : shape.queries;
  return {0, clamp_key(last + v.diagonal, shape), 0, clamp_key(i0 + v.diagonal + 1, shape)};
}

// Of queries i0 … i0 + count − 1, a span of which is span_of(n); every lane of the warp gets the same.
template <class SpanOf>
__device__ __forceinline__ Hull warp_hull(const Shape& shape, int64_t i0, int count, const SpanOf& span_of) {
  Hull hull{int(shape.keys), 0, 0, int(shape.keys)};
  for (int n = lane(); n < count && i0 + n < shape.queries; n += 32) {
    const auto [begin, end] = span_of(n);
    if (begin < end) {
      hull.begin = begin < hull.begin ? begin : hull.begin;
      hull.end = end > hull.end ? end : hull.end;
    }
    hull.all_begin = begin > hull.all_begin ? begin : hull.all_begin;
    hull.all_end = end < hull.all_end ? end : hull.all_end;
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const Hull other{__shfl_xor_sync(0xffffffffu, hull.begin, lanes), __shfl_xor_sync(0xffffffffu, hull.end, lanes),
                     __shfl_xor_sync(0xffffffffu, hull.all_begin, lanes),
                     __shfl_xor_sync(0xffffffffu, hull.all_end, lanes)};
    hull.begin = other.begin < hull.begin ? other.begin : hull.begin;
    hull.end = other.end > hull.end ? other.end : hull.end;
    hull.all_begin = other.all_begin > hull.all_begin ? other.all_begin : hull.all_begin;
    hull.all_end = other.all_end < hull.all_end ? other.all_end : hull.all_end;
  }
  return hull;
}

struct KeyPair {
  int begin, end;
};

// From spans staged at columns 0 …, after a barrier.
template <class Tile>
__device__ __forceinline__ Hull staged_hull(Tile spans, int count, const Shape& shape, int64_t i0) {
  return warp_hull(shape, i0, count, [&](int n) { return KeyPair{spans.load(0, n), spans.load(1, n)}; });
}

// Hulls of all tiles of kCount queries under a key range, (B, H, tiles) of four integers: what a block of keys looks
// through for the tiles that see it. A warp a tile.
struct HullParams {
  Shape shape;
  Visibility visibility;
  int* hulls;
};
inline int64_t hull_tiles(const Shape& n, int count) {
  return n.batch * n.heads * divide_up(n.queries, count);
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) hull_kernel(const HullParams p) {
  const Shape& n = p.shape;
  const int64_t tiles = divide_up(n.queries, kCount), tile = int64_t(blockIdx.x) * kWarps + warp();
  if (tile >= n.batch * n.heads * tiles) return;
  const int64_t head = tile / tiles, i0 = tile % tiles * kCount;
  const Hull hull = warp_hull(n, i0, kCount, [&](int k) {
    const KeySpan span = key_span(n, p.visibility, head / n.heads, head % n.heads, i0 + k);
    return KeyPair{clamp_key(span.begin, n), clamp_key(span.end, n)};
  });
  if (lane() != 0) return;
  simt::global_store(p.hulls + 4 * tile, hull.begin);
  simt::global_store(p.hulls + 4 * tile + 1, hull.end);
  simt::global_store(p.hulls + 4 * tile + 2, hull.all_begin);
  simt::global_store(p.hulls + 4 * tile + 3, hull.all_end);
}

__device__ __forceinline__ Hull load_hull(const int* hulls, int64_t tile) {
  const int* at = hulls + 4 * tile;
  return {simt::global_load(at), simt::global_load(at + 1), simt::global_load(at + 2), simt::global_load(at + 3)};
}

// e^x, to the digits that a logit of the inputs' type has.
template <class Element>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(Element) == 2) return simt::exp_approx(x);
  return std::exp(x);
}

// Products ⟨q,k⟩ → masked logits, in place: own rows are queries i0 …, the others keys j0 …, or the other way round.
// Spans from column `at` on are the queries'; `plain` where every query sees every key and there is no mask.
//
// One pass for each thing that may have to be done, without branches inside: the loops are unrolled 64 times.
template <bool kOwnsKeys, int kRowTiles, int kTiles, class Tile>
__device__ __forceinline__ void mask_logits(const Logits& a, Tile spans, int at, bool plain, int64_t b, int64_t h,
                                            int i0, int j0, float (&s)[kRowTiles][kTiles][4]) {
  const Visibility& v = a.visibility;
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int own = product_row<kRowTiles>(r, e), other = product_column(t, e);
          f(kOwnsKeys ? other : own, kOwnsKeys ? own : other, s[r][t][e]);
        }
  };
  const float scale = float(a.scale);
  each([&](int, int, float& x) { x *= scale; });
  if (a.softcap != 0) {
    const float cap = float(a.softcap), inverse = 1 / cap;
    each([&](int, int, float& x) { x = cap * std::tanh(x * inverse); });
  }
  if (plain) return;
  each([&](int i, int j, float& x) {
    const bool seen = spans.load(0, at + i) <= j0 + j && j0 + j < spans.load(1, at + i);
    x = seen ? x : kHidden<float>;
  });
  if (v.mask_kind == MaskKind::none) return;
  const Strides4& m = v.mask_strides;
  const int64_t corner = b * m.b + h * m.h + i0 * m.i + j0 * m.j;
  if (v.mask_kind == MaskKind::additive) {
    const float* mask = static_cast<const float*>(v.mask) + corner;
    each([&](int i, int j, float& x) {
      if (x != kHidden<float>) x += simt::global_load(mask + i * m.i + j * m.j);
    });
  } else {
    const uint8_t* mask = static_cast<const uint8_t*>(v.mask) + corner;
    each([&](int i, int j, float& x) {
      if (x != kHidden<float>) x = simt::global_load(mask + i * m.i + j * m.j) != 0 ? x : kHidden<float>;
    });
  }
}

}  // namespace artent::attention::tensor

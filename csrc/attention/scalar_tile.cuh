// A pair of tiles, 64 queries by 64 keys, in scalar arithmetic: what float64 and head dimensions above 256 take, for
// which tensor_tile.cuh has no place. Staging, products, and what each query may see. Device code, no torch.
//
// A block of 128 threads holds a 64×64 product in registers, 8 rows × 4 columns a thread. Both operands lie in
// shared memory with the summed index first, so that a step of the sum reads three vectors for 32 multiply-adds.
// The 16 threads that share their 8 rows are one half of a warp.
#pragma once

#include "../common/simt.h"
#include "visible.cuh"

namespace artent::attention::scalar {

constexpr int kTile = 64;
constexpr int kDepth = 32;         // components of the head dimension staged at once; two slices make a square
constexpr int kPitch = kTile + 4;  // keeps vectors aligned; + 4 takes transposing stores off a single bank
constexpr int kThreadRows = 8;
constexpr int kThreadCols = 4;
constexpr int kRowThreads = kTile / kThreadCols;  // threads that share their rows
constexpr int kThreads = kTile / kThreadRows * kRowThreads;

template <class Real>
using Slice = simt::SharedTile<Real, kDepth, kPitch>;
template <class Real>
using Square = simt::SharedTile<Real, kTile, kPitch>;
template <class Real>
using MicroTile = Real[kThreadRows][kThreadCols];

__host__ __device__ constexpr int64_t tiles(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}

__device__ __forceinline__ int thread_row() {
  return int(threadIdx.x) / kRowThreads * kThreadRows;
}
__device__ __forceinline__ int thread_col() {
  return int(threadIdx.x) % kRowThreads * kThreadCols;
}

// One head of an input: rows of `dim` components, at any strides.
template <class Element>
struct Rows {
  const Element* base;
  int64_t row_stride, dim_stride, rows, dim;

  // What query head h reads of x.
  __device__ Rows(const Columns& x, int64_t b, int64_t h, int64_t rows)
      : base(static_cast<const Element*>(x.data) + b * x.strides.b + h / x.group * x.strides.h),
        row_stride(x.strides.i),
        dim_stride(x.strides.j),
        rows(rows),
        dim(x.columns) {}
};

// tile(r, d) = x[row0 + r][dim0 + d], or tile(d, r) when transposed; zero past either end.
template <bool kTransposed, class Tile, class Element>
__device__ void stage(Tile tile, const Rows<Element>& x, int64_t row0, int64_t dim0) {
  using Real = typename Tile::Value;
  constexpr int kDims = kTransposed ? Tile::kRows : kTile;
  for (int n = threadIdx.x; n < kTile * kDims; n += kThreads) {
    const int r = n / kDims, d = n % kDims;  // neighbouring threads read neighbouring components
    Real value = 0;
    if (row0 + r < x.rows && dim0 + d < x.dim)
      value = static_cast<Real>(simt::global_load(x.base + (row0 + r) * x.row_stride + (dim0 + d) * x.dim_stride));
    tile.store(kTransposed ? d : r, kTransposed ? r : d, value);
  }
}

// acc[r][c] += Σ_n a(n, row + r) · b(n, col + c)
template <class Tile, class Real>
__device__ void multiply_accumulate(Tile a, Tile b, MicroTile<Real>& acc) {
  const int row = thread_row(), col = thread_col();
#pragma unroll 4
  for (int n = 0; n < Tile::kRows; ++n) {
    const simt::Vec4<Real> low = a.vec4(n, row), high = a.vec4(n, row + 4), right = b.vec4(n, col);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < kThreadCols; ++c) {
        acc[r][c] += low.x[r] * right.x[c];
        acc[r + 4][c] += high.x[r] * right.x[c];
      }
  }
}

// out[r][c] = Σ_d x[x0 + row + r][d] · y[y0 + col + c][d]. Both slices are free again on return.
template <class Real, class Element>
__device__ void dot_products(Slice<Real> a, Slice<Real> b, const Rows<Element>& x, int64_t x0, const Rows<Element>& y,
                             int64_t y0, MicroTile<Real>& out) {
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < kThreadCols; ++c) out[r][c] = 0;
  for (int64_t dim0 = 0; dim0 < x.dim; dim0 += kDepth) {
    stage<true>(a, x, x0, dim0);
    stage<true>(b, y, y0, dim0);
    __syncthreads();
    multiply_accumulate(a, b, out);
    __syncthreads();
  }
}

__device__ __forceinline__ bool sees(const KeySpan& span, int64_t j) {
  return span.begin <= j && j < span.end;
}
template <class Real>
__device__ __forceinline__ Real capped(Real s, Real softcap) {
  return softcap == 0 ? s : softcap * std::tanh(s / softcap);
}

// The spans of a tile's queries, in shared memory for all threads. Row 0 begins, row 1 ends.
using Spans = simt::SharedTile<int64_t, 2, kTile>;

// Stages the spans of queries i0 …; threads below kTile get their own query's, the others none.
__device__ inline KeySpan stage_spans(Spans spans, const Shape& shape, const Visibility& v, int64_t b, int64_t h,
                                      int64_t i0) {
  const int row = threadIdx.x;
  if (row >= kTile) return KeySpan{0, 0};
  const KeySpan span = key_span(shape, v, b, h, i0 + row);
  spans.store(0, row, span.begin);
  spans.store(1, row, span.end);
  return span;
}

// Whether any query of the tile may see any key of the tile at j0. A barrier: every thread gets the same answer,
// and what was staged before it can be read after it.
__device__ inline bool any_visible(const KeySpan& own, int64_t j0) {
  const bool visible = own.begin < own.end && own.begin < j0 + kTile && j0 < own.end;
  return __syncthreads_or(visible) != 0;
}

}  // namespace artent::attention::scalar

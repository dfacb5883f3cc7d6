// ‖A − U diag(s) Vᵀ‖_F² in float64 without storing the difference, in tiles of 64×64. Device code, no torch.
//
// Float64 throughout: it is asked for where the residual is near rounding, and then it is the rounding that is
// measured.
#pragma once

#include "block.cuh"

namespace artent::rsvd {

constexpr int kResidualTile = 64;
constexpr int kResidualThreads = 256;  // one 4×4 micro-tile each
constexpr int kResidualDepth = 32;     // columns of U and V staged at once: 2 × 17 KiB, six blocks on an sm_80
constexpr int kResidualPitch = kResidualTile + 4;  // keeps vectors aligned; + 4 spreads transposing stores

ARTENT_HOST_DEVICE constexpr int64_t residual_tiles(int64_t m, int64_t n) {
  return (m + kResidualTile - 1) / kResidualTile * ((n + kResidualTile - 1) / kResidualTile);
}
ARTENT_HOST_DEVICE constexpr int residual_bytes(int depth) {
  return 2 * simt::span_bytes<double>(depth * kResidualPitch);
}

// U or V, and what column k of it is multiplied by.
template <class Real>
struct ScaledFactor {
  View<Real> view;
  const Real* s;  // null: nothing
  int exponent;   // of a power of two, besides

  __device__ double load(int64_t row, int k) const {
    const double value = double(simt::global_load(view.at(row, k)));
    return s == nullptr ? value : value * ldexp(double(simt::global_load(s + k)), exponent);
  }
};

// tile(k, i) = x(row0 + i, k0 + k), zero past the last row; neighbouring threads read along what is contiguous.
template <class Real>
__device__ void stage_factor(simt::SharedSpan<double> tile, const ScaledFactor<Real>& x, int64_t row0, int k0,
                             int depth) {
  const bool down = x.view.row_stride < x.view.col_stride;
  for (int n = int(threadIdx.x); n < depth * kResidualTile; n += int(blockDim.x)) {
    const int i = down ? n % kResidualTile : n / depth, k = down ? n / kResidualTile : n % depth;
    tile.store(k * kResidualPitch + i, row0 + i < x.view.rows ? x.load(row0 + i, k0 + k) : 0);
  }
}

using MicroTile = double[4][4];

// acc += Σ_k left(k, row …) right(k, col …)
__device__ __forceinline__ void accumulate_tile(simt::SharedSpan<double> left, simt::SharedSpan<double> right,
                                                int depth, int row, int col, MicroTile& acc) {
  for (int k = 0; k < depth; ++k) {
    const simt::Vec4<double> a = left.vec4(k * kResidualPitch + row), b = right.vec4(k * kResidualPitch + col);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[i][j] += a.x[i] * b.x[j];
  }
}

// Σ (2^exponent A − acc)² over a micro-tile.
template <class Element>
__device__ __forceinline__ double squared_difference(const View<Element>& a, const PowerOfTwo<double>& scale,
                                                     int64_t row, int64_t col, const MicroTile& acc) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < a.rows && col + j < a.cols) {
        const double value = double(static_cast<Accumulator<Element>>(simt::global_load(a.at(row + i, col + j))));
        const double difference = scale(value) - acc[i][j];
        sum += difference * difference;
      }
  return sum;
}

// Micro-tile `n` of a tile: 16 threads side by side.
__device__ __forceinline__ int micro_row(int n) {
  return n / 16 * 4;
}
__device__ __forceinline__ int micro_col(int n) {
  return n % 16 * 4;
}

// One tile by the whole block, any number of threads, for at most `depth` columns that are staged together; this
// thread's share. Begins with whatever barrier freed the spans, ends with one.
template <class Element, class Real>
__device__ double residual_of_tile(const View<Element>& a, const PowerOfTwo<double>& scale, const ScaledFactor<Real>& u,
                                   const ScaledFactor<Real>& v, int64_t row0, int64_t col0, int depth,
                                   simt::SharedSpan<double> left, simt::SharedSpan<double> right) {
  stage_factor(left, u, row0, 0, depth);
  stage_factor(right, v, col0, 0, depth);
  __syncthreads();
  double sum = 0;
  for (int n = int(threadIdx.x); n < kResidualThreads; n += int(blockDim.x)) {
    MicroTile acc = {};
    accumulate_tile(left, right, depth, micro_row(n), micro_col(n), acc);
    sum += squared_difference(a, scale, row0 + micro_row(n), col0 + micro_col(n), acc);
  }
  __syncthreads();
  return sum;
}

// A block a tile of a matrix. Reads A along its rows: where its columns are the contiguous side, A, U and V change
// places.
template <class Element>
__global__ void __launch_bounds__(kResidualThreads) rsvd_residual_kernel(const ResidualParams p) {
  using Real = Accumulator<Element>;
  const int64_t tiles = residual_tiles(p.m, p.n);
  const int64_t b = blockIdx.x / tiles;
  if (!simt::global_load(p.needed + b)) return;
  simt::SharedArena arena;
  const auto left = arena.span<double>(kResidualDepth * kResidualPitch);
  const auto right = arena.span<double>(kResidualDepth * kResidualPitch);
  const auto sums = arena.span<double>(kMaxWarps);

  const View<Element> given{static_cast<const Element*>(p.a) + b * p.a_strides.b, p.a_strides.i, p.a_strides.j,
                            int(p.m), int(p.n)};
  const Real* const s = static_cast<const Real*>(p.s) + b * p.k;
  const View<Real> u{static_cast<const Real*>(p.u) + b * p.u_strides.b, p.u_strides.i, p.u_strides.j, int(p.m), p.k};
  const View<Real> v{static_cast<const Real*>(p.v) + b * p.v_strides.b, p.v_strides.i, p.v_strides.j, int(p.n), p.k};
  const bool turned = p.a_strides.i < p.a_strides.j;
  const View<Element> a = turned ? given.transposed() : given;
  const ScaledFactor<Real> rows{turned ? v : u, s, 0}, cols{turned ? u : v, nullptr, 0};

  const int64_t across = (a.cols + kResidualTile - 1) / kResidualTile, tile = blockIdx.x % tiles;
  const int64_t row0 = tile / across * kResidualTile, col0 = tile % across * kResidualTile;
  const int row = micro_row(int(threadIdx.x)), col = micro_col(int(threadIdx.x));
  MicroTile acc = {};
  for (int k0 = 0; k0 < p.k; k0 += kResidualDepth) {
    const int depth = p.k - k0 < kResidualDepth ? p.k - k0 : kResidualDepth;
    stage_factor(left, rows, row0, k0, depth);
    stage_factor(right, cols, col0, k0, depth);
    __syncthreads();
    accumulate_tile(left, right, depth, row, col, acc);
    __syncthreads();
  }
  const double sum = block_sum(squared_difference(a, PowerOfTwo<double>(0), row0 + row, col0 + col, acc), sums);
  if (threadIdx.x == 0) simt::global_store(p.partial + blockIdx.x, sum);
}

// A warp a matrix: adds up its tiles, in an order that depends on their number alone.
static __global__ void __launch_bounds__(kWarpLanes) rsvd_residual_sum_kernel(const ResidualParams p) {
  const int64_t tiles = residual_tiles(p.m, p.n);
  const int64_t b = blockIdx.x;
  double sum = 0;
  if (simt::global_load(p.needed + b))
    for (int64_t tile = lane_id(); tile < tiles; tile += kWarpLanes)
      sum += simt::global_load(p.partial + b * tiles + tile);
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (lane_id() == 0) simt::global_store(p.out + b, sum);
}

inline Launch residual_launch(const ResidualParams& p) {
  return {p.batch * residual_tiles(p.m, p.n), kResidualThreads,
          residual_bytes(kResidualDepth) + simt::span_bytes<double>(kMaxWarps)};
}

}  // namespace artent::rsvd

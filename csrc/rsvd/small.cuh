// The whole randomized SVD of a small matrix by one thread block, in one launch (rsvd.h). Device code, no torch.
//
// Shared memory: first what lives throughout (singular values and sums), then one region that the phases lay out anew:
//   products          panel | one or two staged tiles of A
//   orthonormalising  panel | Gram matrix, triangle (norms stand in the Jacobi's dots)
//   Jacobi            two q×q matrices in float64
//   residual          two tiles of 64×64
// A panel of 512 rows by 64 columns (32 in float64) takes 136 KiB of the 163 KiB of sm_80. Q and Q₂ wait in global
// memory, each written and read once, while A is read 2(power_iters + 1) times.
#pragma once

#include "cholesky_qr.cuh"
#include "jacobi.cuh"
#include "residual.cuh"

namespace artent::rsvd {

constexpr int kSmallSide = 512;
template <class Real>
constexpr int kSmallWidth = sizeof(Real) == 8 ? 32 : 64;

// Below this share of ‖A‖², ‖A‖² − Σσ̂² is more the rounding of σ̂ than a residual.
template <class Real>
constexpr double kCancellationShare = sizeof(Real) == 8 ? 1e-10 : 1e-4;
// Of the Jacobi SVD: the angles that the working precision can hold.
template <class Real>
constexpr double kAngleTolerance = sizeof(Real) == 8 ? kJacobiTolerance : 1e-9;

template <class Element>
constexpr bool fits_small(const SmallShape& n) {
  return n.m <= kSmallSide && n.q <= kSmallWidth<Accumulator<Element>>;
}

ARTENT_HOST_DEVICE constexpr int larger(int a, int b) {
  return a > b ? a : b;
}
template <class Real>
ARTENT_HOST_DEVICE constexpr int panel_bytes(const SmallShape& n) {
  return simt::span_bytes<Real>(panel_size<Real>(n.m, n.q));
}
template <class Real>
ARTENT_HOST_DEVICE constexpr int tiles_bytes(const SmallShape& n, bool two) {
  return simt::span_bytes<Real>((two ? 2 : 1) * tile_size<Real>(n.m));
}
// Two staged tiles save a barrier each, where there is room.
template <class Real>
ARTENT_HOST_DEVICE constexpr bool two_tiles(const SmallShape& n) {
  return JacobiSpans::bytes(n.q) + panel_bytes<Real>(n) + tiles_bytes<Real>(n, true) <= kSharedLimit;
}
template <class Real>
ARTENT_HOST_DEVICE constexpr int small_bytes(const SmallShape& n) {
  const int beside = larger(tiles_bytes<Real>(n, two_tiles<Real>(n)), round_bytes<Real>(n.q));
  const int jacobi = 2 * simt::span_bytes<double>(n.q * jacobi_pitch(n.q));
  return JacobiSpans::bytes(n.q) + larger(panel_bytes<Real>(n) + beside, larger(jacobi, residual_bytes(n.k)));
}
static_assert(small_bytes<float>({1, 512, 512, 64, 64, 2}) <= kSharedLimit);
static_assert(small_bytes<double>({1, 512, 512, 32, 32, 2}) <= kSharedLimit);

// Enough for one pass of either of the two phases that are long; two warps at least.
ARTENT_HOST_DEVICE constexpr int small_threads(const SmallShape& n) {
  const int wanted = larger(larger(product_threads(n.m), jacobi_threads(n.q)), 64);
  return round_up(wanted < kMaxThreads ? wanted : kMaxThreads, kWarpLanes);
}
static_assert(product_threads(kSmallSide) <= kMaxThreads);

// Scratch elements of the working type a matrix: Q, Q₂, W and X.
ARTENT_HOST_DEVICE constexpr int64_t small_panels(const SmallShape& n) {
  return int64_t(n.m + n.n + 2 * n.k) * n.q;
}

template <class Element>
Launch small_launch(const SmallShape& n) {
  using Real = Accumulator<Element>;
  return {n.batch, small_threads(n), small_bytes<Real>(n)};
}

// The power of two that brings the largest |a| into [½, 1), as an exponent; whether all of A is finite.
struct Magnitude {
  int exponent;
  bool finite;
};
template <class Element>
__device__ Magnitude magnitude(const View<Element>& a, simt::SharedSpan<double> sums) {
  using Real = Accumulator<Element>;
  Real largest = 0;
  int bad = 0;
  TileLoader<Element> loader(a);
  for (int k0 = 0; k0 < a.cols; k0 += kDepth<Real>) {
    loader.fetch(k0);
    loader.each([&](int, int, Real value) {
      const Real size = fabs(value);
      largest = size > largest ? size : largest;
      bad |= !(size < Real(HUGE_VAL));
    });
  }
  if (__syncthreads_or(bad)) return {0, false};
  int exponent = 0;
  frexp(block_max(double(largest), sums), &exponent);
  return {-exponent, true};
}

template <class Real>
__device__ void fill_nan(Real* data, int64_t count) {
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) simt::global_store(data + n, Real(NAN));
}

// Element (q×k, row-major): W or X in the working precision, columns by singular value.
template <class Real>
__device__ void write_rotation(simt::SharedSpan<double> rows, simt::SharedSpan<int32_t> order, int q, int k,
                               Real* out) {
  for (int n = int(threadIdx.x); n < q * k; n += int(blockDim.x))
    simt::global_store(out + n, Real(rows.load(order.load(n % k) * jacobi_pitch(q) + n / k)));
}

template <class Element>
__global__ void __launch_bounds__(kMaxThreads) rsvd_small_kernel(const SmallParams p) {
  using Real = Accumulator<Element>;
  const SmallShape& shape = p.shape;
  const int m = shape.m, n = shape.n, k = shape.k, q = shape.q;
  const int64_t b = blockIdx.x;
  const View<Element> a{static_cast<const Element*>(p.a) + b * p.a_strides.b, p.a_strides.i, p.a_strides.j, m, n};
  const uint64_t seed = uint64_t(simt::global_load(p.seeds.data + b * p.seeds.stride));
  Real* const s = static_cast<Real*>(p.s) + b * k;
  Real* const factors[2] = {static_cast<Real*>(p.left) + b * p.left_strides.b,
                            static_cast<Real*>(p.right) + b * p.right_strides.b};
  const Strides3 factor_strides[2] = {p.left_strides, p.right_strides};
  const int heights[2] = {m, n};
  Real* const panels = static_cast<Real*>(p.panels) + b * small_panels(shape);
  Real* const bases[2] = {panels, panels + int64_t(m) * q};
  Real* const rotations[2] = {bases[1] + int64_t(n) * q, bases[1] + int64_t(n + k) * q};
  const simt::GlobalSpan<double> triangle(p.triangles + b * 2 * q * q, q * q);
  const simt::GlobalSpan<double> spare(p.triangles + (b * 2 + 1) * q * q, q * q);

  simt::SharedArena arena;
  const JacobiSpans spans(arena, q);
  const Magnitude size = magnitude(a, spans.sums);
  if (!size.finite) {
    fill_nan(factors[0], int64_t(m) * k);
    fill_nan(factors[1], int64_t(n) * k);
    fill_nan(s, k);
    if (threadIdx.x == 0) simt::global_store(p.residual + b, double(NAN));
    return;
  }
  const PowerOfTwo<Real> scale(size.exponent);

  // Ω, then A and Aᵀ in turn; the last two panels are orthonormal to rounding and wait as bases of A and of Aᵀ. A
  // sketch as wide as the matrix spans its range: nothing is left to iterate for.
  simt::SharedArena phase = arena;
  const Panel<Real> panel{phase.span<Real>(panel_size<Real>(m, q)), panel_pitch<Real>(q)};
  simt::SharedArena staging = phase;
  const bool two = two_tiles<Real>(shape);
  const auto tiles = staging.span<Real>((two ? 2 : 1) * tile_size<Real>(m));
  sketch_panel(panel, n, q, seed);
  double norm2 = 0;
  const int last = 2 * (q == n ? 0 : shape.power_iters);
  for (int step = 0; step <= last + 1; ++step) {
    const int side = step % 2;
    const double share =
        multiply_panel(side ? a.transposed() : a, scale, panel, q, tiles, two, step == 0);
    if (step == 0) norm2 = block_sum(share, spans.sums);
    for (int round = 0; round < (step < last ? 1 : kMaxRounds); ++round) {
      const double pivot = orthonormalise_panel(panel, heights[side], q, seed, round, phase, spans.dots, step > last, triangle, spare);
      if (pivot >= kPivotEnough) break;
    }
    if (step < last) continue;
    write_panel(panel, heights[side], q, bases[side], q, 1);
    __syncthreads();
  }

  phase = arena;
  const auto w = phase.span<double>(q * jacobi_pitch(q)), x = phase.span<double>(q * jacobi_pitch(q));
  for (int at = int(threadIdx.x); at < q * q; at += int(blockDim.x))
    w.store(at / q * jacobi_pitch(q) + at % q, triangle.load(at));
  __syncthreads();
  Jacobi<simt::SharedSpan<double>>{w, x, q, kAngleTolerance<Real>, spans}.run();
  write_rotation(w, spans.order, q, k, rotations[0]);
  write_rotation(x, spans.order, q, k, rotations[1]);
  double kept = 0, beyond = 0;
  for (int r = 0; r < q; ++r) {
    const double sigma = spans.sigma.load(spans.order.load(r));
    (r < k ? kept : beyond) += sigma * sigma;
  }
  for (int r = int(threadIdx.x); r < k; r += int(blockDim.x))
    simt::global_store(s + r, Real(ldexp(spans.sigma.load(spans.order.load(r)), -size.exponent)));
  __syncthreads();

  for (int side = 0; side < 2 && k > 0; ++side) {  // Q W and Q₂ X
    read_panel(panel, q, k, rotations[side]);
    const View<Real> basis{bases[side], q, 1, heights[side], q};
    multiply_panel(basis, PowerOfTwo<Real>(0), panel, k, tiles, two, false);
    write_panel(panel, heights[side], k, factors[side], factor_strides[side].i, factor_strides[side].j);
    __syncthreads();
  }

  double residual = norm2 - kept - beyond;
  residual = (residual > 0 ? residual : 0) + beyond;
  if (residual < kCancellationShare<Real> * norm2) {
    phase = arena;
    const auto left = phase.span<double>(k * kResidualPitch), right = phase.span<double>(k * kResidualPitch);
    const bool turned = a.row_stride < a.col_stride;  // read A along what is contiguous
    const View<Element> along = turned ? a.transposed() : a;
    const View<Real> views[2] = {{factors[0], p.left_strides.i, p.left_strides.j, m, k},
                                 {factors[1], p.right_strides.i, p.right_strides.j, n, k}};
    const ScaledFactor<Real> rows{views[turned], s, size.exponent}, cols{views[!turned], nullptr, 0};
    double share = 0;
    for (int row0 = 0; row0 < along.rows; row0 += kResidualTile)
      for (int col0 = 0; col0 < along.cols; col0 += kResidualTile)
        share += residual_of_tile(along, PowerOfTwo<double>(size.exponent), rows, cols, row0, col0, k, left, right);
    residual = block_sum(share, spans.sums);
  }
  if (threadIdx.x == 0) simt::global_store(p.residual + b, ldexp(residual, -2 * size.exponent));
}

}  // namespace artent::rsvd

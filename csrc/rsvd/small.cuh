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

// The block's matrix and what belongs to it. Addresses are computed where they are used: a register each would be taken
// from the products. Side 0 is the tall one.
template <class Element>
struct Problem {
  using Real = Accumulator<Element>;
  const SmallParams& p;

  __device__ int64_t b() const { return blockIdx.x; }
  __device__ int height(int side) const { return side ? p.shape.n : p.shape.m; }
  __device__ View<Element> a(bool transposed) const {
    const View<Element> a{static_cast<const Element*>(p.a) + b() * p.a_strides.b, p.a_strides.i, p.a_strides.j,
                          p.shape.m, p.shape.n};
    return transposed ? a.transposed() : a;
  }
  __device__ uint64_t seed() const { return uint64_t(simt::global_load(p.seeds.data + b() * p.seeds.stride)); }
  __device__ Real* s() const { return static_cast<Real*>(p.s) + b() * p.shape.k; }
  // A's factors (height×k) as they are returned.
  __device__ Real* factor(int side) const {
    return side ? static_cast<Real*>(p.right) + b() * p.right_strides.b
                : static_cast<Real*>(p.left) + b() * p.left_strides.b;
  }
  __device__ int64_t row_stride(int side) const { return side ? p.right_strides.i : p.left_strides.i; }
  __device__ int64_t col_stride(int side) const { return side ? p.right_strides.j : p.left_strides.j; }
  __device__ View<Real> factor_view(int side) const {
    return {factor(side), row_stride(side), col_stride(side), height(side), p.shape.k};
  }
  // Scratch: Q and Q₂ (height×q), W and X (q×k).
  __device__ Real* basis(int side) const {
    return static_cast<Real*>(p.panels) + b() * small_panels(p.shape) + (side ? int64_t(p.shape.m) * p.shape.q : 0);
  }
  __device__ Real* rotation(int side) const {
    return basis(1) + int64_t(p.shape.n + (side ? p.shape.k : 0)) * p.shape.q;
  }
  __device__ simt::GlobalSpan<double> triangle(int which) const {
    const int square = p.shape.q * p.shape.q;
    return {p.triangles + (b() * 2 + which) * square, square};
  }
};

// Q and Q₂, orthonormal to rounding, into global memory; R of B = Q₂R likewise. Returns ‖scale(A)‖_F².
template <class Element, class Real = Accumulator<Element>>
__device__ double find_range(const Problem<Element>& problem, const PowerOfTwo<Real>& scale, simt::SharedArena arena,
                             const JacobiSpans& spans) {
  const SmallShape& n = problem.p.shape;
  const Panel<Real> panel{arena.span<Real>(panel_size<Real>(n.m, n.q)), panel_pitch<Real>(n.q)};
  simt::SharedArena staging = arena;
  const bool two = two_tiles<Real>(n);
  const auto tiles = staging.span<Real>((two ? 2 : 1) * tile_size<Real>(n.m));
  sketch_panel(panel, n.n, n.q, problem.seed());
  double norm2 = 0;
  // A and Aᵀ in turn. A sketch as wide as the matrix spans its range: nothing is left to iterate for.
  const int last = 2 * (n.q == n.n ? 0 : n.power_iters);
  for (int step = 0; step <= last + 1; ++step) {
    const int side = step % 2;
    const double share = multiply_panel(problem.a(side), scale, panel, n.q, tiles, two, step == 0);
    if (step == 0) norm2 = block_sum(share, spans.sums);
    for (int round = 0; round < (step < last ? 1 : kMaxRounds); ++round) {
      const double pivot = orthonormalise_panel(panel, problem.height(side), n.q, problem.seed(), round, arena,
                                                spans.dots, step > last, problem.triangle(0), problem.triangle(1));
      if (pivot >= pivot_enough_alone<Real>) break;
    }
    if (step < last) continue;
    write_panel(panel, problem.height(side), n.q, problem.basis(side), n.q, 1);
    __syncthreads();
  }
  return norm2;
}

// R = X Σ Wᵀ: the rotations into global memory, the singular values into spans, those asked for into S too.
template <class Element>
__device__ void decompose_triangle(const Problem<Element>& problem, int exponent, simt::SharedArena arena,
                                   const JacobiSpans& spans) {
  using Real = Accumulator<Element>;
  const int q = problem.p.shape.q, k = problem.p.shape.k;
  const auto w = arena.span<double>(q * jacobi_pitch(q)), x = arena.span<double>(q * jacobi_pitch(q));
  for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x))
    w.store(n / q * jacobi_pitch(q) + n % q, problem.triangle(0).load(n));
  __syncthreads();
  Jacobi<simt::SharedSpan<double>>{w, x, q, jacobi_enough<Real>, spans}.run();
  write_rotation(w, spans.order, q, k, problem.rotation(0));
  write_rotation(x, spans.order, q, k, problem.rotation(1));
  for (int r = int(threadIdx.x); r < k; r += int(blockDim.x))
    simt::global_store(problem.s() + r, Real(ldexp(spans.sigma.load(spans.order.load(r)), -exponent)));
  __syncthreads();
}

// Q W and Q₂ X, the factors.
template <class Element>
__device__ void rotate_bases(const Problem<Element>& problem, simt::SharedArena arena) {
  using Real = Accumulator<Element>;
  const SmallShape& n = problem.p.shape;
  const Panel<Real> panel{arena.span<Real>(panel_size<Real>(n.m, n.q)), panel_pitch<Real>(n.q)};
  const bool two = two_tiles<Real>(n);
  const auto tiles = arena.span<Real>((two ? 2 : 1) * tile_size<Real>(n.m));
  for (int side = 0; side < 2 && n.k > 0; ++side) {
    read_panel(panel, n.q, n.k, problem.rotation(side));
    const View<Real> basis{problem.basis(side), n.q, 1, problem.height(side), n.q};
    multiply_panel(basis, PowerOfTwo<Real>(0), panel, n.k, tiles, two, false);
    write_panel(panel, problem.height(side), n.k, problem.factor(side), problem.row_stride(side),
                problem.col_stride(side));
    __syncthreads();
  }
}

// ‖2^exponent (A − U S Vh)‖_F² from the factors as they were returned.
template <class Element>
__device__ double explicit_residual(const Problem<Element>& problem, int exponent, simt::SharedArena arena,
                                    const JacobiSpans& spans) {
  using Real = Accumulator<Element>;
  const int k = problem.p.shape.k;
  const auto left = arena.span<double>(k * kResidualPitch), right = arena.span<double>(k * kResidualPitch);
  const bool turned = problem.p.a_strides.i < problem.p.a_strides.j;  // read A along what is contiguous
  const View<Element> a = problem.a(turned);
  const ScaledFactor<Real> rows{problem.factor_view(turned), problem.s(), exponent};
  const ScaledFactor<Real> cols{problem.factor_view(!turned), nullptr, 0};
  double share = 0;
  for (int row0 = 0; row0 < a.rows; row0 += kResidualTile)
    for (int col0 = 0; col0 < a.cols; col0 += kResidualTile)
      share += residual_of_tile(a, PowerOfTwo<double>(exponent), rows, cols, row0, col0, k, left, right);
  return block_sum(share, spans.sums);
}

template <class Element>
__global__ void __launch_bounds__(kMaxThreads) rsvd_small_kernel(const SmallParams p) {
  using Real = Accumulator<Element>;
  const int k = p.shape.k, q = p.shape.q;
  const Problem<Element> problem{p};
  simt::SharedArena arena;
  const JacobiSpans spans(arena, q);
  const Magnitude size = magnitude(problem.a(false), spans.sums);
  if (!size.finite) {
    fill_nan(problem.factor(0), int64_t(p.shape.m) * k);
    fill_nan(problem.factor(1), int64_t(p.shape.n) * k);
    fill_nan(problem.s(), k);
    if (threadIdx.x == 0) simt::global_store(p.residual + problem.b(), double(NAN));
    return;
  }
  const double norm2 = find_range(problem, PowerOfTwo<Real>(size.exponent), arena, spans);
  decompose_triangle(problem, size.exponent, arena, spans);
  rotate_bases(problem, arena);

  double kept = 0, beyond = 0;
  for (int r = 0; r < q; ++r) {
    const double sigma = spans.sigma.load(spans.order.load(r));
    (r < k ? kept : beyond) += sigma * sigma;
  }
  double residual = norm2 - kept - beyond;
  residual = (residual > 0 ? residual : 0) + beyond;
  if (residual < cancellation_share<Real> * norm2) residual = explicit_residual(problem, size.exponent, arena, spans);
  if (threadIdx.x == 0) simt::global_store(p.residual + problem.b(), ldexp(residual, -2 * size.exponent));
}

}  // namespace artent::rsvd

// The parts of a randomized SVD as kernels of their own, for matrices and operators of any size: sketch, rounds of
// clamped CholeskyQR, Jacobi. Device code, no torch.
//
// No atomics: partial sums have places of their own and are added in an order that the shape alone decides. A round is
// three launches: Gram matrix by chunks of rows, its factor by a block a matrix, substitution by rows.
#pragma once

#include "cholesky_qr.cuh"
#include "jacobi.cuh"

namespace artent::rsvd {

constexpr int kPartThreads = 256;

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Neighbouring threads write neighbouring columns.
template <class Real>
__global__ void __launch_bounds__(kPartThreads) rsvd_sketch_kernel(const SketchParams p) {
  const int64_t blocks = (p.rows + 3) / 4, n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= p.count * blocks * p.cols) return;
  const int64_t col = n % p.cols, block = n / p.cols % blocks, b = n / p.cols / blocks;
  Real* const out = static_cast<Real*>(p.out) + b * p.rows * p.cols + col;
  const uint64_t seed = uint64_t(simt::global_load(p.seeds.data + b * p.seeds.stride));
  four_normals(seed, 0, block, p.rows, int(col),
               [&](int64_t row, float value) { simt::global_store(out + row * p.cols, Real(value)); });
}

inline Launch sketch_launch(const SketchParams& p) {
  return {divide_up(p.count * ((p.rows + 3) / 4) * p.cols, kPartThreads), kPartThreads, 0};
}

// Whether an earlier round was enough for matrix b.
__device__ inline bool finished(const QrParams& p, int64_t b) {
  return p.until_orthonormal && p.round > 0 && simt::global_load(p.finished + b) < p.round;
}

// Rows of a chunk: of one matrix enough blocks for the device, of partial sums not too many to add up.
ARTENT_HOST_DEVICE constexpr int64_t chunk_rows(int64_t m) {
  constexpr int64_t kSmallest = 128, kChunks = 128;
  const int64_t rows = ((m + kChunks - 1) / kChunks + 31) / 32 * 32;
  return rows < kSmallest ? kSmallest : rows;
}

constexpr int kGramTile = 64;   // columns by columns of G a block: 256 micro-tiles of 4×4
constexpr int kGramDepth = 32;  // rows staged at once, as float64: 2 × 17 KiB
constexpr int kGramPitch = kGramTile + 2;

ARTENT_HOST_DEVICE constexpr int gram_tiles(int q) {
  return (q + kGramTile - 1) / kGramTile;
}

// One chunk's share of a tile of lower(YᵀY). Converts to float64 once, when staging; micro-tiles above the diagonal or
// past the last column do nothing.
template <class Real>
__global__ void __launch_bounds__(kPartThreads) rsvd_gram_kernel(const QrParams p) {
  const int pairs = packed(gram_tiles(p.q));
  const int pair = int(blockIdx.x % pairs);
  const int64_t chunk = blockIdx.x / pairs % p.chunks, b = blockIdx.x / pairs / p.chunks;
  if (finished(p, b)) return;
  int above = 0;
  while (packed(above + 1) <= pair) ++above;
  const int i0 = above * kGramTile, j0 = (pair - packed(above)) * kGramTile;

  simt::SharedArena arena;
  const auto left = arena.span<double>(kGramDepth * kGramPitch), right = arena.span<double>(kGramDepth * kGramPitch);
  const auto& own = i0 == j0 ? left : right;
  const Real* const y = static_cast<const Real*>(p.y) + b * p.m * p.q;
  const int row = int(threadIdx.x) / 16 * 4, col = int(threadIdx.x) % 16 * 4;
  const bool idle = i0 + row >= p.q || j0 + col > i0 + row;
  const int64_t begin = chunk * chunk_rows(p.m), past = begin + chunk_rows(p.m), end = past < p.m ? past : p.m;

  double acc[4][4] = {};
  for (int64_t row0 = begin; row0 < end; row0 += kGramDepth) {
    for (int n = int(threadIdx.x); n < kGramDepth * kGramTile; n += kPartThreads) {
      const int r = n / kGramTile, c = n % kGramTile;
      const Real* const at = y + (row0 + r) * p.q + c;
      const bool inside = row0 + r < end;
      left.store(r * kGramPitch + c, inside && i0 + c < p.q ? double(simt::global_load(at + i0)) : 0);
      if (i0 != j0) right.store(r * kGramPitch + c, inside && j0 + c < p.q ? double(simt::global_load(at + j0)) : 0);
    }
    __syncthreads();
    for (int r = 0; r < kGramDepth && !idle; ++r) {
      const simt::Vec4<double> x = left.vec4(r * kGramPitch + row), z = own.vec4(r * kGramPitch + col);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += x.x[i] * z.x[j];
    }
    __syncthreads();
  }
  if (idle) return;
  double* const out = p.partial + (b * p.chunks + chunk) * packed(p.q);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int gi = i0 + row + i, gj = j0 + col + j;
      if (gi < p.q && gj <= gi) simt::global_store(out + packed(gi, gj), acc[i][j]);
    }
}

inline Launch gram_launch(const QrParams& p) {
  return {p.batch * p.chunks * packed(gram_tiles(p.q)), kPartThreads,
          2 * simt::span_bytes<double>(kGramDepth * kGramPitch)};
}

// Adds up the chunks, factorises, writes this round's triangle and accumulates R.
template <class Real, class Span>
__device__ void factorise_gram(const QrParams& p, int64_t b, const Factor<Span>& factor) {
  const double* const partial = p.partial + b * p.chunks * packed(p.q);
  for (int n = int(threadIdx.x); n < packed(p.q); n += int(blockDim.x)) {
    double sum = 0;
    for (int chunk = 0; chunk < p.chunks; ++chunk) sum += simt::global_load(partial + int64_t(chunk) * packed(p.q) + n);
    factor.g.store(n, sum);
  }
  __syncthreads();
  const double smallest = factor.factorise();
  const int size = triangle_size(p.q), square = p.q * p.q;
  factor.write_triangle(simt::GlobalSpan<Real>(static_cast<Real*>(p.triangle) + b * size, size));
  factor.accumulate(simt::GlobalSpan<double>(p.r + b * square, square),
                    simt::GlobalSpan<double>(p.spare + b * square, square), p.round == 0);
  if (!p.until_orthonormal || threadIdx.x != 0) return;
  if (smallest >= pivot_enough_alone<Real>)
    simt::global_store(p.finished + b, int32_t(p.round));
  else if (p.round == 0)
    simt::global_store(p.finished + b, INT32_MAX);
}

// The Gram matrix fits in shared memory up to 196 columns; beyond, p.gram is there.
ARTENT_HOST_DEVICE constexpr int factor_bytes(int q) {
  return simt::span_bytes<double>(packed(q)) + simt::span_bytes<double>(q);
}
constexpr bool factor_in_shared(int q) {
  return q <= 196;
}
static_assert(factor_bytes(196) <= kSharedLimit);

template <class Real>
__global__ void __launch_bounds__(kPartThreads) rsvd_factor_kernel(const QrParams p) {
  const int64_t b = blockIdx.x;
  if (finished(p, b)) return;
  const bool drop = p.round >= give_up<Real>;
  if (p.gram == nullptr) {
    simt::SharedArena arena;
    const auto g = arena.span<double>(packed(p.q)), norms = arena.span<double>(p.q);
    factorise_gram<Real>(p, b, Factor<simt::SharedSpan<double>>{g, norms, p.q, drop, shortest_column<Real>});
  } else {
    const simt::GlobalSpan<double> g(p.gram + b * (packed(p.q) + p.q), packed(p.q) + p.q);
    factorise_gram<Real>(p, b,
                         Factor<simt::GlobalSpan<double>>{g, g.from(packed(p.q)), p.q, drop, shortest_column<Real>});
  }
}

inline Launch factor_launch(const QrParams& p) {
  return {p.batch, kPartThreads, factor_in_shared(p.q) ? factor_bytes(p.q) : 0};
}

constexpr int kRowThreads = 64;         // a row each, in shared memory
constexpr int kSharedTriangle = 96;     // columns whose triangle is worth a copy in shared memory: 20 or 40 KiB
constexpr int kRowsBytes = 100 * 1024;  // of the rows, which are fewer than threads when they are very long

template <class Real>
ARTENT_HOST_DEVICE constexpr int rows_of_block(int q) {
  const int rows = kRowsBytes / (panel_pitch<Real>(q) * int(sizeof(Real)));
  return rows < kRowThreads ? rows : kRowThreads;
}

template <class Real>
__global__ void __launch_bounds__(kRowThreads) rsvd_substitute_kernel(const QrParams p) {
  const int q = p.q, height = rows_of_block<Real>(q), width = round_up(q, 8);
  const int64_t row_tiles = (p.m + height - 1) / height, b = blockIdx.x / row_tiles;
  const int64_t row0 = blockIdx.x % row_tiles * height;
  if (finished(p, b)) return;
  const int rows = int(p.m - row0 < height ? p.m - row0 : height);
  simt::SharedArena arena;
  const Panel<Real> panel{arena.span<Real>(height * panel_pitch<Real>(q)), panel_pitch<Real>(q)};
  Real* const y = static_cast<Real*>(p.y) + (b * p.m + row0) * q;
  const int size = triangle_size(q);
  const simt::GlobalSpan<Real> triangle(static_cast<Real*>(p.triangle) + b * size, size);

  read_panel(panel, rows, q, y);
  const int self = int(threadIdx.x), at = self * panel.pitch;
  if (q <= kSharedTriangle) {
    const auto copy = arena.span<Real>(size);
    for (int n = self; n < size; n += kRowThreads) copy.store(n, triangle.load(n));
    __syncthreads();
    if (self < rows) substitute_row(panel.data, at, copy, q);
  } else {
    __syncthreads();
    if (self < rows) substitute_row(panel.data, at, triangle, q);
  }
  __syncthreads();
  for (int n = self; n < rows * width; n += kRowThreads) {
    const int row = n / width, col = n % width;
    if (col >= q) continue;
    Real value = panel.load(row, col);
    if (triangle.load(triangle_at(col, col)) == Real(0)) {  // a zero column: normals, of which the round below is one
      const uint64_t seed = uint64_t(simt::global_load(p.seeds.data + b * p.seeds.stride));
      const Normal4 normals = normal4(seed, kFillStream + uint32_t(p.round), uint64_t((row0 + row) / 4), uint32_t(col));
      const int part = int((row0 + row) % 4);
      value = Real(part == 0 ? normals.x[0] : part == 1 ? normals.x[1] : part == 2 ? normals.x[2] : normals.x[3]);
    }
    simt::global_store(y + int64_t(row) * q + col, value);
  }
}

template <class Real>
Launch substitute_launch(const QrParams& p) {
  const int height = rows_of_block<Real>(p.q);
  const int triangle = p.q <= kSharedTriangle ? simt::span_bytes<Real>(triangle_size(p.q)) : 0;
  return {p.batch * divide_up(p.m, height), kRowThreads,
          simt::span_bytes<Real>(height * panel_pitch<Real>(p.q)) + triangle};
}

// A block a matrix, its two squares in shared memory up to 96 columns and in p.scratch beyond.
constexpr bool jacobi_in_shared(int q) {
  return q <= 96;
}
ARTENT_HOST_DEVICE constexpr int jacobi_square(int q) {
  return q * jacobi_pitch(q);
}
static_assert(JacobiSpans::bytes(96) + 2 * simt::span_bytes<double>(jacobi_square(96)) <= kSharedLimit);

template <class Span>
__device__ void jacobi_svd(const JacobiParams& p, const Jacobi<Span>& jacobi) {
  const int q = p.q, pitch = jacobi_pitch(q);
  const int64_t b = blockIdx.x;
  const double* const r = p.r + b * q * q;
  for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x))
    jacobi.w.store(n / q * pitch + n % q, simt::global_load(r + n));
  __syncthreads();
  const bool finite = jacobi.run();
  for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x)) {
    const int at = finite ? jacobi.spans.order.load(n % q) * pitch + n / q : 0;
    simt::global_store(p.u + b * q * q + n, finite ? jacobi.x.load(at) : double(NAN));
    simt::global_store(p.v + b * q * q + n, finite ? jacobi.w.load(at) : double(NAN));
  }
  for (int n = int(threadIdx.x); n < q; n += int(blockDim.x))
    simt::global_store(p.s + b * q + n, finite ? jacobi.spans.sigma.load(jacobi.spans.order.load(n)) : double(NAN));
}

static __global__ void __launch_bounds__(kMaxThreads) rsvd_jacobi_kernel(const JacobiParams p) {
  simt::SharedArena arena;
  const JacobiSpans spans(arena, p.q);
  const int square = jacobi_square(p.q);
  if (p.scratch == nullptr) {
    const auto w = arena.span<double>(square), x = arena.span<double>(square);
    jacobi_svd(p, Jacobi<simt::SharedSpan<double>>{w, x, p.q, kJacobiTolerance, spans});
  } else {
    double* const own = p.scratch + int64_t(blockIdx.x) * 2 * square;
    const simt::GlobalSpan<double> w(own, square), x(own + square, square);
    jacobi_svd(p, Jacobi<simt::GlobalSpan<double>>{w, x, p.q, kJacobiTolerance, spans});
  }
}

inline Launch jacobi_launch(const JacobiParams& p) {
  const int wanted = round_up(jacobi_threads(p.q), kWarpLanes);
  const int squares = jacobi_in_shared(p.q) ? 2 * simt::span_bytes<double>(jacobi_square(p.q)) : 0;
  return {p.batch, wanted < 64 ? 64 : wanted < kMaxThreads ? wanted : kMaxThreads, JacobiSpans::bytes(p.q) + squares};
}

}  // namespace artent::rsvd

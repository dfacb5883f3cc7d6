// A round of clamped CholeskyQR (rsvd.h) by one thread block, in pieces that stand for themselves. Device code, no
// torch.
//
// A Span is shared or global memory. The Gram matrix and its factor are kept as the packed lower half: 16.6 KiB for
// 64 columns, beside a panel that leaves no room for a square. Lanes that walk down a column of it step by triangular
// numbers, which run through all residues of a power of two: no bank is met twice.
#pragma once

#include "panel.cuh"

namespace artent::rsvd {

// R of one round in the working precision, as substitution reads it: blocks of eight columns, of block c the rows
// 0 … 8c + 7, eight elements each. On the diagonal the reciprocal, or zero where the column waits for a fill.
ARTENT_HOST_DEVICE constexpr int triangle_size(int q) {
  const int blocks = round_up(q, 8) / 8;
  return 32 * blocks * (blocks + 1);
}
ARTENT_HOST_DEVICE constexpr int triangle_at(int row, int col) {
  const int block = col / 8;
  return 32 * block * (block + 1) + row * 8 + col % 8;
}

// lower(G) = lower(YᵀY) in float64. A warp a tile of 4×4; its lanes share out the rows, then add up so that two lanes
// hold each element. The sums' order depends on the shape alone. Ends with a barrier.
template <class Real>
__device__ void gram_panel(const Panel<Real>& y, int rows, int q, simt::SharedSpan<double> gram) {
  const int tiles = packed(round_up(q, 4) / 4);
  for (int tile = warp_id(), above = 0; tile < tiles; tile += warp_count()) {
    while (packed(above + 1) <= tile) ++above;
    const int i0 = above * 4, j0 = (tile - packed(above)) * 4;
    double sum[16] = {};
    for (int row = lane_id(); row < rows; row += kWarpLanes) {
      const simt::Vec4<Real> a = y.vec4(row, i0), b = y.vec4(row, j0);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i * 4 + j] += double(a.x[i]) * double(b.x[j]);
    }
    // Each step gives half of what a lane holds to its partner and takes the partner's share of the other half.
#pragma unroll
    for (int kept = 8; kept > 0; kept /= 2) {
      const bool upper = lane_id() & (2 * kept);
#pragma unroll
      for (int n = 0; n < kept; ++n) {
        const double given = upper ? sum[n] : sum[n + kept], own = upper ? sum[n + kept] : sum[n];
        sum[n] = own + __shfl_xor_sync(kAllLanes, given, 2 * kept);
      }
    }
    sum[0] += __shfl_xor_sync(kAllLanes, sum[0], 1);
    const int i = i0 + lane_id() / 8, j = j0 + lane_id() / 2 % 4;
    if (lane_id() % 2 == 0 && i < q && j <= i) gram.store(packed(i, j), sum[0]);
  }
  __syncthreads();
}

// D⁻¹GD⁻¹ = L̃ diag(d) L̃ᵀ in place, with d on the diagonal and L̃ diag(d) below: one barrier a column, square roots
// later.
template <class Span>
struct Factor {
  Span g;      // packed(q)
  Span norms;  // (q), D
  int q;
  bool drop;  // a pivot that would have to be raised is rounding: its row of R is zero, its column will be filled
  double shortest;

  __device__ bool dropped(int j) const { return norms.load(j) == 0 || (drop && g.load(packed(j, j)) <= kPivotFloor); }
  // Its row of R is the pivot alone, and it eliminates nothing.
  __device__ bool raised(int j) const { return !(g.load(packed(j, j)) > kPivotFloor); }
  __device__ double pivot(int j) const {
    const double d = g.load(packed(j, j));
    return d > kPivotFloor ? d : kPivotFloor;
  }
  // R(i, j), i ≤ j.
  __device__ double r(int i, int j) const {
    if (dropped(i)) return 0;
    const double root = sqrt(pivot(i));
    return (i == j ? root : raised(i) ? 0 : g.load(packed(j, i)) / root) * norms.load(j);
  }

  // Ends with a barrier. Returns the smallest pivot, 0 if a row was dropped; the same in every thread.
  __device__ double factorise() const {
    for (int j = int(threadIdx.x); j < q; j += int(blockDim.x)) {
      const double norm2 = g.load(packed(j, j));
      norms.store(j, norm2 > shortest * shortest ? sqrt(norm2) : norm2 != norm2 ? norm2 : 0);
    }
    __syncthreads();
    for (int i = warp_id(); i < q; i += warp_count()) {
      const double inverse = norms.load(i) == 0 ? 0 : 1 / norms.load(i);
      for (int j = lane_id(); j <= i; j += kWarpLanes) {
        const double norm = norms.load(j), value = g.load(packed(i, j));
        g.store(packed(i, j), norm == 0 ? 0 : value * inverse / norm);
      }
    }
    __syncthreads();
    double smallest = 1;
    for (int j = 0; j < q; ++j) {
      if (dropped(j)) {
        smallest = 0;
      } else {
        const double d = pivot(j), inverse = 1 / d;
        smallest = d < smallest ? d : smallest;
        const int below = raised(j) ? q : j + 1;
        for (int i = below + warp_id(); i < q; i += warp_count()) {
          const double factor = g.load(packed(i, j)) * inverse;
          for (int k = j + 1 + lane_id(); k <= i; k += kWarpLanes)
            g.store(packed(i, k), g.load(packed(i, k)) - factor * g.load(packed(k, j)));
        }
      }
      __syncthreads();
    }
    return smallest;
  }

  // This round's R for substitution, padding included.
  template <class Triangle>
  __device__ void write_triangle(Triangle triangle) const {
    using Real = typename Triangle::Value;
    for (int j = warp_id(); j < round_up(q, 8); j += warp_count())
      for (int i = lane_id(); i < j / 8 * 8 + 8; i += kWarpLanes) {
        double value = 0;
        if (i <= j && j < q) value = r(i, j);
        if (i == j && value != 0) value = 1 / value;
        triangle.store(triangle_at(i, j), Real(value));
      }
  }

  // total ← R · total for upper triangles, by way of `spare`; total ← R in the first round. Row-major, zeros below.
  __device__ void accumulate(simt::GlobalSpan<double> total, simt::GlobalSpan<double> spare, bool first) const {
    for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x)) {
      const int i = n / q, j = n % q;
      double sum = 0;
      if (first)
        sum = i <= j ? r(i, j) : 0;
      else
        for (int k = i; k <= j; ++k) sum += r(i, k) * total.load(k * q + j);
      (first ? total : spare).store(n, sum);
    }
    if (first) return;
    __syncthreads();
    for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x)) total.store(n, spare.load(n));
  }
};

// One row of Y R⁻¹ in place; the row starts at `at`, padded to a multiple of eight. Eight columns at a time: what the
// columns before take away, read as vectors that all threads share, then the block's own triangle in registers.
template <class Row, class Triangle>
__device__ void substitute_row(Row row, int at, Triangle triangle, int q) {
  using Real = typename Triangle::Value;
  for (int col = 0; col < q; col += 8) {
    const int block = triangle_at(0, col);
    Real y[8];
    const simt::Vec4<Real> y0 = row.vec4(at + col), y1 = row.vec4(at + col + 4);
#pragma unroll
    for (int c = 0; c < 4; ++c) y[c] = y0.x[c], y[c + 4] = y1.x[c];
    for (int k = 0; k < col; k += 4) {
      const simt::Vec4<Real> x = row.vec4(at + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const simt::Vec4<Real> r0 = triangle.vec4(block + (k + i) * 8), r1 = triangle.vec4(block + (k + i) * 8 + 4);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          y[c] -= x.x[i] * r0.x[c];
          y[c + 4] -= x.x[i] * r1.x[c];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const simt::Vec4<Real> r0 = triangle.vec4(block + (col + k) * 8), r1 = triangle.vec4(block + (col + k) * 8 + 4);
      const auto r = [&](int c) { return c < 4 ? r0.x[c] : r1.x[c - 4]; };
      y[k] *= r(k);
#pragma unroll
      for (int c = k + 1; c < 8; ++c) y[c] -= y[k] * r(c);
    }
    simt::Vec4<Real> q0, q1;
#pragma unroll
    for (int c = 0; c < 4; ++c) q0.x[c] = y[c], q1.x[c] = y[c + 4];
    row.store_vec4(at + col, q0);
    row.store_vec4(at + col + 4, q1);
  }
}

// Shared memory of a round beside the panel and the norms.
template <class Real>
ARTENT_HOST_DEVICE constexpr int round_bytes(int q) {
  return simt::span_bytes<double>(packed(q)) + simt::span_bytes<Real>(triangle_size(q));
}

// One round over a panel. `keep_r` accumulates R in `total`. Begins and ends with a barrier behind it; returns the
// smallest pivot.
template <class Real>
__device__ double orthonormalise_panel(const Panel<Real>& y, int rows, int q, uint64_t seed, int round,
                                       simt::SharedArena arena, simt::SharedSpan<double> norms, bool keep_r,
                                       simt::GlobalSpan<double> total, simt::GlobalSpan<double> spare) {
  const auto gram = arena.span<double>(packed(q));
  const auto triangle = arena.span<Real>(triangle_size(q));
  gram_panel(y, rows, q, gram);
  const Factor<simt::SharedSpan<double>> factor{gram, norms, q, round >= give_up<Real>, shortest_column<Real>};
  const double smallest = factor.factorise();
  factor.write_triangle(triangle);
  if (keep_r) factor.accumulate(total, spare, round == 0);
  __syncthreads();
  for (int row = int(threadIdx.x); row < rows; row += int(blockDim.x))
    substitute_row(y.data, row * y.pitch, triangle, q);
  __syncthreads();
  if (smallest > 0) return smallest;
  for (int col = 0; col < q; ++col) {
    if (!factor.dropped(col)) continue;
    for (int block = int(threadIdx.x); 4 * block < rows; block += int(blockDim.x))
      four_normals(seed, kFillStream + uint32_t(round), block, rows, col,
                   [&](int64_t row, float value) { y.store(int(row), col, Real(value)); });
  }
  __syncthreads();
  return smallest;
}

}  // namespace artent::rsvd

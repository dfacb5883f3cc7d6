// C = A·X for a narrow X, the product that all CPU kernels spend their time in; A in any strided layout.
//
// A's elements are broadcast against registers of X's columns, so neither A nor X is packed and the same loop serves
// A·X and Aᵀ·Y (strides exchanged). Every element of C is a sum of chains of multiply-adds, one a block of the depth,
// in its order (a single chain would round constant data the same way at every step). Whatever rows a task takes, the
// operations are the same: results do not depend on how the work is shared out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vec.h"

namespace artent {

// Rows first … last − 1 of C (rows×ld) = A (rows×depth) · X (depth×ld), added to C where accumulate. ld is a number of
// whole vectors.
template <typename R>
struct Product {
  const R* a;
  int64_t row_stride, depth_stride, depth;
  const R* x;
  R* c;
  int64_t ld, first, last;
  bool accumulate = false;
};

// How A is walked through. Along its unit stride X is what is used again: 128 of its rows (12 KiB) for kRowsAlong rows
// of C, which stay in the second-level cache. Across it a line of A serves several blocks of rows of C: 64 lines at a
// time (more of them, a power of two apart, would fall into the same few sets of the cache), for all rows.
constexpr int64_t kDepthAlong = 128, kDepthAcross = 64, kRowsAlong = 192;

// Rows of C held in registers beside kVectors of X and one broadcast: 16 registers, 32 with AVX-512. More than 6 rows
// gain nothing once the multiply-adds' latency is hidden.
template <int Bytes, int kVectors>
constexpr int row_block() {
  constexpr int registers = Bytes == 64 ? 32 : 16;
  constexpr int rows = (registers - 1 - kVectors) / kVectors;
  return rows < 6 ? rows : 6;
}

template <int Bytes, int kRows, int kVectors, typename R>
ARTENT_INLINE void product_block(const Product<R>& p, int64_t row, int64_t begin, int64_t end, int64_t column) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  V acc[kRows][kVectors];
  R* const c = p.c + row * p.ld + column;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = V{};
  const R* a = p.a + row * p.row_stride + begin * p.depth_stride;
  const R* x = p.x + begin * p.ld + column;
  for (int64_t k = begin; k < end; ++k, a += p.depth_stride, x += p.ld) {
    V b[kVectors];
    for (int v = 0; v < kVectors; ++v) b[v] = S::load(x + v * S::lanes);
    for (int r = 0; r < kRows; ++r) {
      const V s = S::splat(a[r * p.row_stride]);
      for (int v = 0; v < kVectors; ++v) acc[r][v] += s * b[v];
    }
  }
  const bool overwrite = begin == 0 && !p.accumulate;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      R* const at = c + r * p.ld + v * S::lanes;
      S::store(at, overwrite ? acc[r][v] : S::load(at) + acc[r][v]);
    }
}

template <int Bytes, int kVectors, typename R>
ARTENT_INLINE void product_panel(const Product<R>& p, int64_t column) {
  constexpr int kRows = row_block<Bytes, kVectors>();
  const bool along = p.depth_stride == 1;
  const int64_t depth = along ? kDepthAlong : kDepthAcross, rows = along ? kRowsAlong : p.last - p.first;
  for (int64_t first = p.first; first < p.last; first += rows) {
    const int64_t last = std::min(first + rows, p.last);
    for (int64_t begin = 0; begin < p.depth || begin == 0; begin += depth) {
      const int64_t end = std::min(begin + depth, p.depth);
      int64_t row = first;
      for (; row + kRows <= last; row += kRows) product_block<Bytes, kRows, kVectors>(p, row, begin, end, column);
      if (kRows > 4 && row + 4 <= last) {
        product_block<Bytes, 4, kVectors>(p, row, begin, end, column);
        row += 4;
      }
      if (kRows > 2 && row + 2 <= last) {
        product_block<Bytes, 2, kVectors>(p, row, begin, end, column);
        row += 2;
      }
      for (; row < last; ++row) product_block<Bytes, 1, kVectors>(p, row, begin, end, column);
    }
  }
}

template <int Bytes, typename R>
ARTENT_INLINE void product_body(const Product<R>& p) {
  constexpr int64_t lanes = Simd<R, Bytes>::lanes;
  int64_t column = 0;
  // Panels of three vectors, and of two where a single one would be left.
  for (int64_t left = p.ld / lanes; left > 0;) {
    const int64_t width = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
    if (width == 3) product_panel<Bytes, 3>(p, column);
    if (width == 2) product_panel<Bytes, 2>(p, column);
    if (width == 1) product_panel<Bytes, 1>(p, column);
    column += width * lanes;
    left -= width;
  }
}

ARTENT_ISA_DISPATCH(product, Product<float>, product_body)
ARTENT_ISA_DISPATCH(product, Product<double>, product_body)

}  // namespace artent

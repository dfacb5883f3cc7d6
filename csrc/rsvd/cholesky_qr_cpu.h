// One round of the clamped CholeskyQR of rsvd.h: Gram matrix and Cholesky factor in float64, substitution in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../common/vec.h"
#include "rsvd.h"

namespace artent::rsvd {

constexpr int64_t kGramRows = 64;   // rows of Y in float64 at a time: 64 × 40 × 8 bytes stay in the first-level cache
constexpr int64_t kSolveRows = 32;  // rows copied aside while they are multiplied by an inverse in place

// upper(G) (q×ld, rows contiguous) = upper(YᵀY) over rows first … last − 1; `wide` holds kGramRows×ld.
template <typename R>
struct Gram {
  const R* y;
  int64_t q, ld, first, last;
  double* g;
  double* wide;
};

template <int Bytes, int kVectors>
ARTENT_INLINE void gram_block(const double* wide, int64_t rows, int64_t ld, int64_t i, int64_t j, double* g) {
  using S = Simd<double, Bytes>;
  using V = typename S::V;
  constexpr int kRows = 4;
  V acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = S::load(g + (i + r) * ld + j + v * S::lanes);
  for (int64_t t = 0; t < rows; ++t) {
    const double* y = wide + t * ld;
    for (int v = 0; v < kVectors; ++v) {
      const V b = S::load(y + j + v * S::lanes);
      for (int r = 0; r < kRows; ++r) acc[r][v] += S::splat(y[i + r]) * b;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) S::store(g + (i + r) * ld + j + v * S::lanes, acc[r][v]);
}

// g has ceil(q/4)·4 rows: the four rows of a block may reach past q, into columns of zeros.
template <int Bytes, typename R>
ARTENT_INLINE void gram_body(const Gram<R>& p) {
  constexpr int64_t lanes = Simd<double, Bytes>::lanes;
  const int64_t height = (p.q + 3) / 4 * 4;
  for (int64_t i = 0; i < height * p.ld; ++i) p.g[i] = 0;
  for (int64_t begin = p.first; begin < p.last; begin += kGramRows) {
    const int64_t rows = std::min(kGramRows, p.last - begin);
    const R* y = p.y + begin * p.ld;
    for (int64_t i = 0; i < rows * p.ld; ++i) p.wide[i] = double(y[i]);
    for (int64_t i = 0; i < height; i += 4) {
      for (int64_t j = i / lanes * lanes; j < p.ld;) {
        const int64_t left = (p.ld - j) / lanes, width = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
        if (width == 3) gram_block<Bytes, 3>(p.wide, rows, p.ld, i, j, p.g);
        if (width == 2) gram_block<Bytes, 2>(p.wide, rows, p.ld, i, j, p.g);
        if (width == 1) gram_block<Bytes, 1>(p.wide, rows, p.ld, i, j, p.g);
        j += width * lanes;
      }
    }
  }
}

ARTENT_ISA_DISPATCH(gram, Gram<float>, gram_body)
ARTENT_ISA_DISPATCH(gram, Gram<double>, gram_body)

// In place: upper(G) becomes R = chol(D⁻¹GD⁻¹)·D. A pivot that has to be raised is alone in its row, and not there at
// all where `drop` says that it is rounding. Columns not longer than `shortest` get a zero row too.
struct Cholesky {
  double* g;  // q×ld
  int64_t q, ld;
  bool drop;
  double shortest;
  double *scale, *inverse;  // (ld), overwritten: the columns' norms and their inverses
  double* pivot;            // (1), out: the smallest pivot; 0 if a row is zero
};

// Rows are walked in whole vectors from the one that holds the diagonal; what that writes below it is never read.
template <int Bytes>
ARTENT_INLINE void cholesky_body(const Cholesky& p) {
  using S = Simd<double, Bytes>;
  double smallest = 1;
  for (int64_t j = 0; j < p.ld; ++j) {
    const double norm2 = j < p.q ? p.g[j * p.ld + j] : 0;
    p.scale[j] = norm2 > p.shortest * p.shortest ? std::sqrt(norm2) : 0;
    p.inverse[j] = p.scale[j] > 0 ? 1 / p.scale[j] : 0;
  }
  for (int64_t i = 0; i < p.q; ++i) {
    double* row = p.g + i * p.ld;
    const int64_t start = i / S::lanes * S::lanes;
    const auto own = S::splat(p.inverse[i]);
    for (int64_t j = start; j < p.ld; j += S::lanes) S::store(row + j, S::load(row + j) * own * S::load(p.inverse + j));
    for (int64_t k = 0; k < i; ++k) {
      const double* above = p.g + k * p.ld;
      const auto factor = S::splat(above[i]);
      for (int64_t j = start; j < p.ld; j += S::lanes)
        S::store(row + j, S::load(row + j) - factor * S::load(above + j));
    }
    const bool raised = !(row[i] > kPivotFloor), dropped = p.scale[i] == 0 || (p.drop && raised);
    const double pivot = raised ? kPivotFloor : row[i];
    smallest = dropped ? 0 : pivot < smallest ? pivot : smallest;
    row[i] = pivot;
    const auto normalise = S::splat(dropped ? 0 : 1 / std::sqrt(pivot));
    for (int64_t j = start; j < p.ld; j += S::lanes) S::store(row + j, S::load(row + j) * normalise);
    for (int64_t j = i + 1; raised && j < p.ld; ++j) row[j] = 0;
  }
  for (int64_t i = 0; i < p.q; ++i) {
    double* row = p.g + i * p.ld;
    for (int64_t j = i / S::lanes * S::lanes; j < p.ld; j += S::lanes)
      S::store(row + j, S::load(row + j) * S::load(p.scale + j));
  }
  *p.pivot = smallest;
}

ARTENT_ISA_DISPATCH(cholesky, Cholesky, cholesky_body)

// T = R⁻¹, rows from below: T_i = (e_i − Σ_{k>i} r_ik T_k) / r_ii. `out` (q×ld) in the working precision, zeros past q.
template <typename R>
struct Inverse {
  const double* r;  // q×ld, upper
  int64_t q, ld;
  double* t;  // q×ld, overwritten
  R* out;
};

template <int Bytes, typename R>
ARTENT_INLINE void inverse_body(const Inverse<R>& p) {
  using S = Simd<double, Bytes>;
  for (int64_t i = p.q - 1; i >= 0; --i) {
    double* row = p.t + i * p.ld;
    const double* r = p.r + i * p.ld;
    const int64_t start = i / S::lanes * S::lanes;
    for (int64_t j = 0; j < p.ld; ++j) row[j] = 0;
    for (int64_t k = i + 1; k < p.q; ++k) {
      const typename S::V factor = S::splat(r[k]);
      const double* below = p.t + k * p.ld;
      for (int64_t j = start; j < p.ld; j += S::lanes)
        S::store(row + j, S::load(row + j) - factor * S::load(below + j));
    }
    row[i] = 1;
    const double inverse = 1 / r[i];
    for (int64_t j = 0; j < p.ld; ++j) {
      row[j] *= inverse;
      p.out[i * p.ld + j] = R(row[j]);
    }
  }
}

ARTENT_ISA_DISPATCH(inverse, Inverse<float>, inverse_body)
ARTENT_ISA_DISPATCH(inverse, Inverse<double>, inverse_body)

// Rows first … last − 1 of Y become those of Y R⁻¹, by substitution. r (q×ld) in the working precision; a zero on the
// diagonal marks a column that stays as it is.
template <typename R>
struct Solve {
  R* y;
  const R* r;
  int64_t q, ld, first, last;
};

template <int Bytes, int kRows, typename R>
ARTENT_INLINE void solve_rows(const Solve<R>& p, int64_t row) {
  using S = Simd<R, Bytes>;
  R* const y = p.y + row * p.ld;
  for (int64_t i = 0; i < p.q; ++i) {
    const R* r = p.r + i * p.ld;
    if (r[i] == R(0)) continue;
    typename S::V s[kRows];
    for (int t = 0; t < kRows; ++t) {
      y[t * p.ld + i] /= r[i];
      s[t] = S::splat(y[t * p.ld + i]);
    }
    int64_t j = i + 1;
    for (; j < p.q && j % S::lanes != 0; ++j)
      for (int t = 0; t < kRows; ++t) y[t * p.ld + j] -= s[t][0] * r[j];
    for (; j < p.q; j += S::lanes) {
      const typename S::V b = S::load(r + j);  // zero past q
      for (int t = 0; t < kRows; ++t) S::store(y + t * p.ld + j, S::load(y + t * p.ld + j) - s[t] * b);
    }
  }
}

template <int Bytes, typename R>
ARTENT_INLINE void solve_body(const Solve<R>& p) {
  int64_t row = p.first;
  for (; row + 4 <= p.last; row += 4) solve_rows<Bytes, 4>(p, row);
  for (; row < p.last; ++row) solve_rows<Bytes, 1>(p, row);
}

ARTENT_ISA_DISPATCH(solve, Solve<float>, solve_body)
ARTENT_ISA_DISPATCH(solve, Solve<double>, solve_body)

}  // namespace artent::rsvd

// SVD of a small triangle by one-sided Jacobi rotations in float64 (rsvd.h): R = X Σ Wᵀ, from the rows of R.
//
// The columns of Rᵀ are rotated pairwise until they are orthogonal: Rᵀ X = W Σ. A triangular factor of an almost
// orthogonal sketch is nearly diagonal this way round, and few sweeps are needed (Drmač and Veselić).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "../common/vec.h"
#include "rsvd.h"

namespace artent::rsvd {

struct Jacobi {
  int64_t q, ld;     // ld ≥ q, a number of whole vectors; zeros past q
  double* w;         // (q×ld) in: row i is row i of R; out: row i is column i of W
  double* x;         // (q×ld) out: row i is column i of X
  double* sigma;     // (q) out, descending
  double enough;     // stop after a sweep that met no larger cosine between two columns
  double* scratch;   // 4·(q + 1)
  int32_t* players;  // q + 1
};

template <int Bytes>
ARTENT_INLINE double dot(const double* a, const double* b, int64_t ld) {
  using S = Simd<double, Bytes>;
  typename S::V s{};
  for (int64_t i = 0; i < ld; i += S::lanes) s += S::load(a + i) * S::load(b + i);
  return S::horizontal_sum(s);
}

template <int Bytes>
ARTENT_INLINE void rotate(double* a, double* b, double c, double s, int64_t ld) {
  using S = Simd<double, Bytes>;
  for (int64_t i = 0; i < ld; i += S::lanes) {
    const typename S::V x = S::load(a + i), y = S::load(b + i);
    S::store(a + i, x * c - y * s);
    S::store(b + i, x * s + y * c);
  }
}

// For pairs of columns with squared norms a, b and inner product g: the rotation's cosine (in place of a), sine (of b)
// and the change of the norms (of g).
ARTENT_INLINE void jacobi_angles(int64_t pairs, double* __restrict gamma, double* __restrict cosine,
                                 double* __restrict sine) {
  for (int64_t t = 0; t < pairs; ++t) {
    const double g = gamma[t], a = cosine[t], b = sine[t];
    const double shorter = a < b ? a : b;
    const double turn = g * g > kJacobiTolerance * kJacobiTolerance * a * b && shorter > kLost * kLost ? 1.0 : 0.0;
    const double zeta = (b - a) / (2 * g + (1 - turn));  // no pair without a turn divides by zero
    const double root = std::copysign(1 / (std::abs(zeta) + std::sqrt(1 + zeta * zeta)), zeta);
    const double tangent = turn > 0 ? root : 0;
    const double c = 1 / std::sqrt(1 + tangent * tangent);
    cosine[t] = c;
    sine[t] = tangent * c;
    gamma[t] = tangent * g;
  }
}

// One sweep in round-robin order; a round's pairs are disjoint, so their angles are computed together. Returns the
// largest squared cosine between two columns that it met.
template <int Bytes>
ARTENT_INLINE double jacobi_sweep(const Jacobi& p, double* norm2) {
  const int64_t n = (p.q + 1) / 2 * 2, pairs = n / 2;
  double *gamma = norm2 + p.q + 1, *cosine = gamma + pairs, *sine = cosine + pairs;
  for (int64_t i = 0; i < p.q; ++i) norm2[i] = dot<Bytes>(p.w + i * p.ld, p.w + i * p.ld, p.ld);
  for (int64_t i = 0; i < n; ++i) p.players[i] = int32_t(i);
  double largest = 0;
  for (int64_t round = 0; round < n - 1; ++round) {
    for (int64_t t = 0; t < pairs; ++t) {
      const int64_t i = std::min(p.players[t], p.players[n - 1 - t]), j = std::max(p.players[t], p.players[n - 1 - t]);
      gamma[t] = j < p.q ? dot<Bytes>(p.w + i * p.ld, p.w + j * p.ld, p.ld) : 0;
      cosine[t] = norm2[i];
      sine[t] = j < p.q ? norm2[j] : 1;
      const double overlap = gamma[t] * gamma[t], product = cosine[t] * sine[t];
      const bool lost = std::min(cosine[t], sine[t]) <= kLost * kLost;
      if (!lost && overlap > largest * product) largest = overlap / product;
    }
    jacobi_angles(pairs, gamma, cosine, sine);
    for (int64_t t = 0; t < pairs; ++t) {
      const int64_t i = std::min(p.players[t], p.players[n - 1 - t]), j = std::max(p.players[t], p.players[n - 1 - t]);
      if (sine[t] == 0 || j >= p.q) continue;  // nothing to turn, or nobody to turn with
      rotate<Bytes>(p.w + i * p.ld, p.w + j * p.ld, cosine[t], sine[t], p.ld);
      rotate<Bytes>(p.x + i * p.ld, p.x + j * p.ld, cosine[t], sine[t], p.ld);
      // The update cancels where one column was nearly a multiple of the other.
      for (const auto& [c, change] : {std::pair{i, -gamma[t]}, std::pair{j, gamma[t]}}) {
        const double before = norm2[c];
        norm2[c] += change;
        if (norm2[c] < 0.1 * before) norm2[c] = dot<Bytes>(p.w + c * p.ld, p.w + c * p.ld, p.ld);
      }
    }
    const int32_t last = p.players[n - 1];  // the first player stays, the others move on by one
    for (int64_t t = n - 1; t > 1; --t) p.players[t] = p.players[t - 1];
    if (n > 1) p.players[1] = last;
  }
  return largest;
}

// Rows of w from `rank` on, replaced so that all are orthonormal: each time the unit vector farthest from the others.
template <int Bytes>
ARTENT_INLINE void complete_basis(const Jacobi& p, int64_t rank) {
  for (int64_t i = rank; i < p.q; ++i) {
    double* row = p.w + i * p.ld;
    int64_t farthest = 0;
    double least = 2;
    for (int64_t c = 0; c < p.q; ++c) {
      double covered = 0;
      for (int64_t r = 0; r < i; ++r) covered += p.w[r * p.ld + c] * p.w[r * p.ld + c];
      if (covered < least) least = covered, farthest = c;
    }
    for (int64_t c = 0; c < p.ld; ++c) row[c] = c == farthest;
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t r = 0; r < i; ++r) {
        const double overlap = dot<Bytes>(p.w + r * p.ld, row, p.ld);
        for (int64_t c = 0; c < p.q; ++c) row[c] -= overlap * p.w[r * p.ld + c];
      }
    const double inverse = 1 / std::sqrt(dot<Bytes>(row, row, p.ld));
    for (int64_t c = 0; c < p.q; ++c) row[c] *= inverse;
  }
}

template <int Bytes>
ARTENT_INLINE void jacobi_body(const Jacobi& p) {
  double peak = 0;
  bool finite = true;
  for (int64_t i = 0; i < p.q * p.ld; ++i) {
    peak = std::max(peak, std::abs(p.w[i]));
    finite = finite && std::abs(p.w[i]) <= std::numeric_limits<double>::max();
  }
  if (!finite) {
    for (int64_t i = 0; i < p.q * p.ld; ++i) p.w[i] = p.x[i] = std::nan("");
    for (int64_t i = 0; i < p.q; ++i) p.sigma[i] = std::nan("");
    return;
  }
  const double scale = peak > 0 ? peak : 1, inverse = 1 / scale;
  for (int64_t i = 0; i < p.q * p.ld; ++i) p.w[i] *= inverse, p.x[i] = 0;
  for (int64_t i = 0; i < p.q; ++i) p.x[i * p.ld + i] = 1;
  double largest = 1;
  for (int sweep = 0; sweep < kJacobiSweeps && largest > p.enough * p.enough; ++sweep)
    largest = jacobi_sweep<Bytes>(p, p.scratch);
  // Hundreds of rotations by rounded angles stretch rows of w and x alike, by some 1e-14.
  for (int64_t i = 0; i < p.q; ++i) {
    double *w = p.w + i * p.ld, *x = p.x + i * p.ld;
    const double stretch = 1 / std::sqrt(dot<Bytes>(x, x, p.ld));
    p.sigma[i] = std::sqrt(dot<Bytes>(w, w, p.ld)) * stretch;
    for (int64_t c = 0; c < p.ld; ++c) {
      w[c] *= stretch;
      x[c] *= stretch;
    }
  }
  for (int64_t i = 0; i < p.q; ++i) {  // selection sort: q is small, and rows are swapped q times at most
    int64_t largest = i;
    for (int64_t j = i + 1; j < p.q; ++j)
      if (p.sigma[j] > p.sigma[largest]) largest = j;
    if (largest == i) continue;
    std::swap(p.sigma[i], p.sigma[largest]);
    std::swap_ranges(p.w + i * p.ld, p.w + i * p.ld + p.ld, p.w + largest * p.ld);
    std::swap_ranges(p.x + i * p.ld, p.x + i * p.ld + p.ld, p.x + largest * p.ld);
  }
  int64_t rank = 0;
  while (rank < p.q && p.sigma[rank] > kLost) {
    const double normalise = 1 / p.sigma[rank];
    for (int64_t c = 0; c < p.q; ++c) p.w[rank * p.ld + c] *= normalise;
    ++rank;
  }
  complete_basis<Bytes>(p, rank);
  for (int64_t i = 0; i < p.q; ++i) p.sigma[i] = i < rank ? p.sigma[i] * scale : 0;
}

ARTENT_ISA_DISPATCH(jacobi, Jacobi, jacobi_body)

}  // namespace artent::rsvd

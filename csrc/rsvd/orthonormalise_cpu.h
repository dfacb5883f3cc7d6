// Orthonormal columns by rounds of clamped CholeskyQR (rsvd.h), shared out over a team of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../common/philox.h"
#include "../common/product_cpu.h"
#include "cholesky_qr_cpu.h"

namespace artent::rsvd {

// Runs task(0) … task(count − 1), on all threads or on this one. Tasks never depend on which.
struct Team {
  bool all_threads = false;

  template <typename F>
  void operator()(int64_t count, const F& task) const {
    if (!all_threads || count < 2) {
      for (int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
  }
};

constexpr int64_t kTaskRows = 96;     // of a triangular solve, or of a difference: whole blocks of kSolveRows
constexpr int64_t kProductRows = 48;  // a share of a product is a number of whole register blocks and cache lines
constexpr int64_t kGramTasks = 32;    // at most; their partial sums are added in order

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Columns of a buffer for q of them: whole vectors of R, and whole groups of four for the Gram matrix.
template <typename R>
int64_t padded(int64_t q) {
  const int64_t lanes = std::max<int64_t>(register_bytes() / int64_t(sizeof(R)), 4);
  return divide_up(q, lanes) * lanes;
}

// All rows of a product. Its values do not depend on how the rows are shared out, so a share is what suits the threads.
template <typename R>
void multiply(const Team& team, Product<R> p, int64_t rows) {
  const int64_t shares = team.all_threads ? torch::stable::get_num_threads() : 1;
  const int64_t share = divide_up(divide_up(rows, shares), kProductRows) * kProductRows;
  team(divide_up(rows, share), [&](int64_t task) {
    Product<R> part = p;
    part.first = task * share;
    part.last = std::min(rows, part.first + share);
    product(part);
  });
}

// What orthonormalising q columns needs besides the columns.
template <typename R>
struct QrWorkspace {
  int64_t q, ld;
  std::vector<double> partial, wide, round, triangle, scale, inverse;
  std::vector<R> factor, rows;

  explicit QrWorkspace(int64_t q_)
      : q(q_), ld(padded<R>(q_)), round((q + 4) * ld), triangle(q * ld), scale(ld), inverse(ld), factor(q * ld) {}
};

// upper(w.round) = upper(YᵀY).
template <typename R>
void gram_matrix(const Team& team, const R* y, int64_t m, QrWorkspace<R>& w) {
  const int64_t rows = std::max(kGramRows * 4, divide_up(divide_up(m, kGramTasks), kGramRows) * kGramRows);
  const int64_t tasks = divide_up(m, rows), size = (w.q + 4) * w.ld;
  w.partial.resize(tasks * size);
  w.wide.resize((team.all_threads ? tasks : 1) * kGramRows * w.ld);
  team(tasks, [&](int64_t t) {
    double* wide = w.wide.data() + (team.all_threads ? t : 0) * kGramRows * w.ld;
    gram(Gram<R>{y, w.q, w.ld, t * rows, std::min(m, (t + 1) * rows), w.partial.data() + t * size, wide});
  });
  std::copy_n(w.partial.begin(), size, w.round.begin());
  for (int64_t t = 1; t < tasks; ++t)
    for (int64_t i = 0; i < size; ++i) w.round[i] += w.partial[t * size + i];
}

// w.factor = R⁻¹ of the triangle in w.round, if it may be used: R̂⁻¹ = D R⁻¹ has no large element.
template <typename R>
bool invert(double pivot, QrWorkspace<R>& w) {
  if (!(pivot >= kPivotHarmless)) return false;
  inverse(Inverse<R>{w.round.data(), w.q, w.ld, w.triangle.data(), w.factor.data()});
  double growth = 0;
  for (int64_t i = 0; i < w.q; ++i) {
    double largest = 0;
    for (int64_t j = i; j < w.q; ++j) largest = std::max(largest, std::abs(w.triangle[i * w.ld + j]));
    growth = std::max(growth, largest * w.scale[i]);
  }
  return growth <= kGrowthHarmless;
}

// Y ← Y R⁻¹ in place for the triangle in w.round: through the inverse where it is harmless (a plain product, twice as
// fast), by substitution otherwise. Returns which.
template <typename R>
bool divide_by_triangle(const Team& team, R* y, int64_t m, double pivot, QrWorkspace<R>& w) {
  const bool by_inverse = invert(pivot, w);
  for (int64_t i = 0; i < w.q && !by_inverse; ++i)
    for (int64_t j = 0; j < w.ld; ++j) w.factor[i * w.ld + j] = j >= i && j < w.q ? R(w.round[i * w.ld + j]) : R(0);
  const int64_t tasks = divide_up(m, kTaskRows);
  w.rows.resize((team.all_threads ? tasks : 1) * kSolveRows * w.ld);
  team(tasks, [&](int64_t t) {
    const int64_t first = t * kTaskRows, last = std::min(m, first + kTaskRows);
    if (!by_inverse) return solve(Solve<R>{y, w.factor.data(), w.q, w.ld, first, last});
    R* rows = w.rows.data() + (team.all_threads ? t : 0) * kSolveRows * w.ld;
    for (int64_t row = first; row < last; row += kSolveRows) {
      const int64_t count = std::min(kSolveRows, last - row);
      std::copy_n(y + row * w.ld, count * w.ld, rows);
      product(Product<R>{rows, w.ld, 1, w.q, w.factor.data(), y + row * w.ld, w.ld, 0, count});
    }
  });
  return by_inverse;
}

// Normals in place of the columns of Y (m×ld) that have a zero on the diagonal of R.
template <typename R>
bool fill_zero_columns(R* y, int64_t m, const QrWorkspace<R>& w, uint64_t seed, int round) {
  bool any = false;
  for (int64_t j = 0; j < w.q; ++j) {
    if (w.round[j * w.ld + j] != 0) continue;
    any = true;
    for (int64_t i = 0; i < m; i += 4) {
      const Normal4 normals = normal4(seed, kFillStream + uint32_t(round), uint64_t(i / 4), uint32_t(j));
      for (int64_t t = 0; t < 4 && i + t < m; ++t) y[(i + t) * w.ld + j] = R(normals.x[t]);
    }
  }
  return any;
}

// total ← round · total for upper triangles, in place.
inline void accumulate_triangle(const double* round, double* total, int64_t q, int64_t ld) {
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = q - 1; j >= i; --j) {
      double s = 0;
      for (int64_t k = i; k <= j; ++k) s += round[i * ld + k] * total[k * ld + j];
      total[i * ld + j] = s;
    }
}

// Y (m×ld, m ≥ q) becomes Q, and Y = Q·upper(total) if `total` (q×ld) is given. `rounds` of CholeskyQR; 0: until the
// columns are orthonormal to rounding.
template <typename R>
void orthonormalise(const Team& team, R* y, int64_t m, int rounds, uint64_t seed, QrWorkspace<R>& w, double* total) {
  for (int round = 0; round < (rounds > 0 ? rounds : kMaxRounds); ++round) {
    gram_matrix(team, y, m, w);
    double pivot = 0;
    cholesky(Cholesky{w.round.data(), w.q, w.ld, round >= give_up<R>, shortest_column<R>, w.scale.data(),
                      w.inverse.data(), &pivot});
    const bool harmless = divide_by_triangle(team, y, m, pivot, w);
    const bool filled = pivot == 0 && fill_zero_columns(y, m, w, seed, round);
    if (total != nullptr) {
      if (round == 0) {
        std::copy_n(w.round.data(), w.q * w.ld, total);
      } else {
        accumulate_triangle(w.round.data(), total, w.q, w.ld);
      }
    }
    if (rounds == 0 && harmless && pivot >= pivot_enough<R> && !filled) break;
  }
}

}  // namespace artent::rsvd

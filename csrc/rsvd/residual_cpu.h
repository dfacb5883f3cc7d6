// ‖A − U diag(S) Vh‖_F² without storing the difference, in float64: what ‖A‖² − Σσ̂² cannot tell where it cancels.
#pragma once

#include "source_cpu.h"

namespace artent::rsvd {

// ‖A − L diag(s) Rᵀ‖_F² in float64; left (m×k), right given as its transpose (k×n).
template <typename R>
double explicit_residual(const Team& team, const Source<R>& a, const R* left, int64_t left_row, int64_t left_col,
                         const R* s, const R* right, int64_t right_row, int64_t right_col, int64_t k,
                         std::vector<double>& l, std::vector<double>& r) {
  const int64_t ld = padded<double>(a.n), tasks = divide_up(a.m, kTaskRows);
  l.assign(a.m * k, 0);
  r.assign(k * ld, 0);
  for (int64_t i = 0; i < a.m; ++i)
    for (int64_t j = 0; j < k; ++j) l[i * k + j] = double(left[i * left_row + j * left_col]) * double(s[j]);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < a.n; ++j) r[i * ld + j] = double(right[i * right_row + j * right_col]);
  const int64_t shares = std::min<int64_t>(tasks, team.all_threads ? torch::stable::get_num_threads() : 1);
  std::vector<double> sums(tasks), rows(shares * kSolveRows * ld);
  team(shares, [&](int64_t share) {
    double* c = rows.data() + share * kSolveRows * ld;
    for (int64_t t = tasks * share / shares; t < tasks * (share + 1) / shares; ++t) {
      double sum = 0;
      for (int64_t row = t * kTaskRows; row < std::min(a.m, (t + 1) * kTaskRows); row += kSolveRows) {
        const int64_t count = std::min(kSolveRows, a.m - row);
        product(Product<double>{l.data() + row * k, k, 1, k, r.data(), c, ld, 0, count});
        for (int64_t i = 0; i < count; ++i)
          for (int64_t j = 0; j < a.n; ++j) {
            const double e = double(a.data[(row + i) * a.row_stride + j * a.col_stride]) - c[i * ld + j];
            sum += e * e;
          }
      }
      sums[t] = sum;
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace artent::rsvd

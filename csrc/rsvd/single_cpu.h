// The randomized SVD of one matrix on the CPU (rsvd.h), on one thread or on all.
#pragma once

#include "jacobi_cpu.h"
#include "orthonormalise_cpu.h"
#include "source_cpu.h"

namespace artent::rsvd {

// Below this share of ‖A‖², ‖A‖² − Σσ̂² is more the rounding of σ̂ than a residual.
template <typename R>
constexpr double kCancellation = 1e-4;
template <>
constexpr double kCancellation<double> = 1e-10;

// The Jacobi SVD that ends the algorithm is done after a sweep without larger cosines: convergence is quadratic, so
// they are below float32's rounding then. In float64 a sweep has to find nothing.
template <typename R>
constexpr double kJacobiEnough = 1e-5;
template <>
constexpr double kJacobiEnough<double> = kJacobiTolerance;

struct Plan {
  int64_t k, q;  // singular triplets asked for, columns of the sketch
  int power_iters;
};

template <typename R>
struct Output {
  R *u, *s, *vh;  // (rows×k), (k), (k×cols), contiguous
  double* residual;
};

template <typename R>
struct Workspace {
  Plan plan;
  QrWorkspace<R> qr;
  std::vector<R> store, sketch, y, z, small, product;
  std::vector<double> w, x, sigma, scratch, left, right;
  std::vector<int32_t> players;

  explicit Workspace(const Plan& p)
      : plan(p),
        qr(p.q),
        small(p.q * qr.ld),
        w((p.q + 4) * qr.ld),
        x((p.q + 4) * qr.ld),
        sigma(p.q),
        scratch(4 * (p.q + 2)),
        players(p.q + 1) {}
};

// Ω (n×ld): normals by (seed, row, column), zeros past q.
template <typename R>
void fill_sketch(const Team& team, uint64_t seed, int64_t n, int64_t q, int64_t ld, R* omega) {
  team(divide_up(n, 64), [&](int64_t task) {
    for (int64_t i = task * 64; i < std::min(n, (task + 1) * 64); i += 4) {
      const int64_t rows = std::min<int64_t>(4, n - i);
      for (int64_t t = 0; t < rows; ++t) std::fill_n(omega + (i + t) * ld, ld, R(0));
      for (int64_t j = 0; j < q; ++j) {
        const Normal4 normals = normal4(seed, 0, uint64_t(i / 4), uint32_t(j));
        for (int64_t t = 0; t < rows; ++t) omega[(i + t) * ld + j] = R(normals.x[t]);
      }
    }
  });
}

// basis (rows×ld) times the first k rows' transpose of `rotation` (q×ld, float64): row-major (rows×k), or transposed.
template <typename R>
void write_factor(const Team& team, const R* basis, int64_t rows, const std::vector<double>& rotation, bool transposed,
                  R* out, Workspace<R>& w) {
  const int64_t k = w.plan.k, q = w.plan.q, ld = w.qr.ld;
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < ld; ++j) w.small[i * ld + j] = j < k ? R(rotation[j * ld + i]) : R(0);
  w.product.resize(rows * ld);
  const int64_t width = padded<R>(k);
  for (int64_t i = 0; i < q && width < ld; ++i) std::copy_n(w.small.data() + i * ld, width, w.small.data() + i * width);
  multiply(team, Product<R>{basis, ld, 1, q, w.small.data(), w.product.data(), width, 0, 0}, rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < k; ++j) (transposed ? out[j * rows + i] : out[i * k + j]) = w.product[i * width + j];
}

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
  std::vector<double> sums(tasks), rows((team.all_threads ? tasks : 1) * kSolveRows * ld);
  team(tasks, [&](int64_t t) {
    double* c = rows.data() + (team.all_threads ? t : 0) * kSolveRows * ld;
    const int64_t last = std::min(a.m, (t + 1) * kTaskRows);
    double sum = 0;
    for (int64_t row = t * kTaskRows; row < last; row += kSolveRows) {
      const int64_t count = std::min(kSolveRows, last - row);
      product(Product<double>{l.data() + row * k, k, 1, k, r.data(), c, ld, 0, count});
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < a.n; ++j) {
          const double e = double(a.data[(row + i) * a.row_stride + j * a.col_stride]) - c[i * ld + j];
          sum += e * e;
        }
    }
    sums[t] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template <typename T, typename R = typename Working<T>::type>
void decompose(const Team& team, const Given<T>& given, uint64_t seed, const R* omega, const Output<R>& out,
               Workspace<R>& w) {
  const auto [k, q, power_iters] = w.plan;
  const Source<R> a = prepare(team, given, w.store);
  if (a.norm2 != a.norm2) {
    std::fill_n(out.u, given.rows * k, R(a.norm2));
    std::fill_n(out.s, k, R(a.norm2));
    std::fill_n(out.vh, k * given.cols, R(a.norm2));
    *out.residual = a.norm2;
    return;
  }
  const int64_t ld = w.qr.ld;
  w.y.resize(a.m * ld);
  w.z.resize(a.n * ld);
  R *y = w.y.data(), *z = w.z.data();
  const auto times_a = [&](const R* x) {
    multiply(team, Product<R>{a.data, a.row_stride, a.col_stride, a.n, x, y, ld, 0, 0}, a.m);
  };
  const auto times_at = [&] {
    multiply(team, Product<R>{a.data, a.col_stride, a.row_stride, a.m, y, z, ld, 0, 0}, a.n);
  };
  // A sketch as wide as the matrix spans its range: nothing is left to iterate for.
  const int iterations = q == a.n ? 0 : power_iters;
  times_a(omega);
  for (int i = 0; i < iterations; ++i) {
    orthonormalise(team, y, a.m, 1, seed, w.qr, nullptr);
    times_at();
    orthonormalise(team, z, a.n, 1, seed, w.qr, nullptr);
    times_a(z);
  }
  orthonormalise(team, y, a.m, 0, seed, w.qr, nullptr);
  times_at();
  std::fill(w.w.begin(), w.w.end(), 0.0);
  orthonormalise(team, z, a.n, 0, seed, w.qr, w.w.data());
  for (int64_t i = 0; i < q; ++i) std::fill_n(w.w.data() + i * ld, i, 0.0);  // the triangle's other half
  jacobi(Jacobi{q, ld, w.w.data(), w.x.data(), w.sigma.data(), kJacobiEnough<R>, w.scratch.data(), w.players.data()});

  const bool wide = given.rows < given.cols;
  write_factor(team, y, a.m, w.w, wide, wide ? out.vh : out.u, w);
  write_factor(team, z, a.n, w.x, !wide, wide ? out.u : out.vh, w);
  double kept = 0, beyond = 0;
  for (int64_t i = 0; i < q; ++i) (i < k ? kept : beyond) += w.sigma[i] * w.sigma[i];
  for (int64_t i = 0; i < k; ++i) out.s[i] = R(w.sigma[i]);
  double residual = std::max(a.norm2 - kept - beyond, 0.0) + beyond;
  if (residual < kCancellation<R> * a.norm2) {
    residual = wide ? explicit_residual(team, a, out.vh, 1, a.m, out.s, out.u, 1, k, k, w.left, w.right)
                    : explicit_residual(team, a, out.u, k, 1, out.s, out.vh, a.n, 1, k, w.left, w.right);
  }
  *out.residual = std::ldexp(residual, 2 * a.exponent);
  if (a.exponent != 0)
    for (int64_t i = 0; i < k; ++i) out.s[i] = R(std::ldexp(w.sigma[i], a.exponent));
}

}  // namespace artent::rsvd

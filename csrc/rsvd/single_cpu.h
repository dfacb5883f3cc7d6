// The randomized SVD of one matrix on the CPU (rsvd.h), on one thread or on all.
#pragma once

#include "jacobi_cpu.h"
#include "library_cpu.h"
#include "residual_cpu.h"
#include "workspace_cpu.h"

namespace artent::rsvd {

// basis (rows×ld) times the first k rows' transpose of `rotation` (q×ld, float64): row-major (rows×k), or transposed.
template <typename R>
void write_factor(const Team& team, const R* basis, int64_t rows, const std::vector<double>& rotation, bool transposed,
                  R* out, Workspace<R>& w) {
  const int64_t k = w.plan.k, q = w.plan.q, ld = w.qr.ld, width = padded<R>(k);
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < width; ++j) w.small[i * width + j] = j < k ? R(rotation[j * ld + i]) : R(0);
  w.product.resize(rows * width);
  multiply(team, Product<R>{basis, ld, 1, q, w.small.data(), w.product.data(), width, 0, 0}, rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < k; ++j) (transposed ? out[j * rows + i] : out[i * k + j]) = w.product[i * width + j];
}

// Q (in w.y), Q₂ (in w.z) and the triangle R (in w.w) of B = AᵀQ = Q₂R.
template <typename R>
void find_range(const Team& team, const Source<R>& a, uint64_t seed, const R* omega, Workspace<R>& w) {
  const int64_t q = w.plan.q, ld = w.qr.ld;
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
  const int iterations = q == a.n ? 0 : w.plan.power_iters;
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
}

template <typename T, typename R = Accumulator<T>>
void decompose(const Team& team, const Tensor& like, const Given<T>& given, uint64_t seed, const R* omega,
               const Output<R>& out, Workspace<R>& w) {
  const int64_t k = w.plan.k;
  const bool wide = given.rows < given.cols;
  const Source<R> a = prepare(team, given, w.store);
  if (a.norm2 != a.norm2) {
    std::fill_n(out.u, given.rows * k, R(a.norm2));
    std::fill_n(out.s, k, R(a.norm2));
    std::fill_n(out.vh, k * given.cols, R(a.norm2));
    *out.residual = a.norm2;
    return;
  }
  if (w.plan.whole()) {
    library_svd(like, a, wide, out, w);
  } else {
    find_range(team, a, seed, omega, w);
    if (w.plan.library()) {
      library_small_svd(like, w);
    } else {
      jacobi(Jacobi{w.plan.q, w.qr.ld, w.w.data(), w.x.data(), w.sigma.data(), jacobi_enough<R>, w.scratch.data(),
                    w.players.data()});
    }
    write_factor(team, w.y.data(), a.m, w.w, wide, wide ? out.vh : out.u, w);
    write_factor(team, w.z.data(), a.n, w.x, !wide, wide ? out.u : out.vh, w);
  }
  for (int64_t i = 0; i < k; ++i) out.s[i] = R(w.sigma[i]);
  double kept = 0, beyond = 0;
  for (size_t i = 0; i < w.sigma.size(); ++i) (int64_t(i) < k ? kept : beyond) += w.sigma[i] * w.sigma[i];
  double residual = std::max(a.norm2 - kept - beyond, 0.0) + beyond;
  if (residual < cancellation_share<R> * a.norm2) {
    residual = wide ? explicit_residual(team, a, out.vh, 1, a.m, out.s, out.u, 1, k, k, w.left, w.right)
                    : explicit_residual(team, a, out.u, k, 1, out.s, out.vh, a.n, 1, k, w.left, w.right);
  }
  *out.residual = std::ldexp(residual, 2 * a.exponent);
  if (a.exponent != 0)
    for (int64_t i = 0; i < k; ++i) out.s[i] = R(std::ldexp(w.sigma[i], a.exponent));
}

}  // namespace artent::rsvd

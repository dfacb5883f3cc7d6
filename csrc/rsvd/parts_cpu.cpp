// The parts of a randomized SVD as ops of their own, on the CPU: for operators, whose products are Python's.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <tuple>

#include "../common/dispatch.h"
#include "rsvd_args.h"
#include "single_cpu.h"

namespace artent::rsvd {
namespace {

// body(b) for every matrix: matrices over threads where there are enough, otherwise one after the other on all threads.
template <typename F>
void for_each_matrix(int64_t batch, const char* op, const F& body) {
  std::atomic<bool> failed{false};
  if (batch < int64_t(torch::stable::get_num_threads())) {
    for (int64_t b = 0; b < batch; ++b) body(Team{true}, b);
    return;
  }
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t b = begin; b < end; ++b) body(Team{false}, b);
    } catch (const std::exception&) {
      failed = true;
    }
  });
  STD_TORCH_CHECK(!failed, op, ": out of memory");
}

Tensor rsvd_sketch(Tensor seed, int64_t rows, int64_t cols, ScalarType dtype) {
  check_seed(seed, seed.dim() == 1 ? seed.size(0) : 0);
  STD_TORCH_CHECK(rows >= 0 && cols >= 0, "rows and cols must be non-negative");
  Tensor out = new_tensor<3>(seed, {seed.size(0), rows, cols}, dtype);
  const Tensor seeds = torch::stable::contiguous(seed);
  const auto* keys = static_cast<const int64_t*>(seeds.const_data_ptr());
  if (rows == 0 || cols == 0) return out;
  dispatch_floating(out, "dtype", [&](auto type) {
    using R = decltype(type);
    R* data = static_cast<R*>(out.mutable_data_ptr());
    for_each_matrix(seed.size(0), "rsvd_sketch", [&](const Team& team, int64_t b) {
      fill_sketch(team, uint64_t(keys[b]), rows, cols, cols, data + b * rows * cols);
    });
  });
  return out;
}

// The exponent by which columns are divided before their squares are summed: 0 unless these leave float64's range.
template <typename R>
int out_of_range(const std::vector<R>& y) {
  double peak = 0;
  for (const R x : y) peak = std::max(peak, std::abs(double(x)));
  const int exponent = peak > 0 && std::isfinite(peak) ? std::ilogb(peak) : 0;
  return std::abs(exponent) > 400 ? exponent : 0;
}

std::tuple<Tensor, Tensor> rsvd_orthonormalise(Tensor Y, int64_t rounds, Tensor seed) {
  check_batch(Y, "Y");
  const int64_t batch = Y.size(0), m = Y.size(1), q = Y.size(2);
  check_seed(seed, batch);
  STD_TORCH_CHECK(m >= q, "Y must be tall, got ", m, "×", q);
  STD_TORCH_CHECK(rounds >= 0 && rounds < 100, "rounds must be in 0 … 99");
  Tensor Q = new_tensor<3>(Y, {batch, m, q}, Y.scalar_type());
  Tensor factor = new_tensor<3>(Y, {batch, q, q}, ScalarType::Double);
  const Tensor given = torch::stable::contiguous(Y), seeds = torch::stable::contiguous(seed);
  if (q == 0) return {Q, factor};
  dispatch_floating(Y, "Y", [&](auto type) {
    using R = decltype(type);
    const auto* keys = static_cast<const int64_t*>(seeds.const_data_ptr());
    for_each_matrix(batch, "rsvd_orthonormalise", [&](const Team& team, int64_t b) {
      QrWorkspace<R> w(q);
      std::vector<R> y(m * w.ld);
      std::vector<double> total(q * w.ld);
      const R* in = static_cast<const R*>(given.const_data_ptr()) + b * m * q;
      for (int64_t i = 0; i < m; ++i) std::copy_n(in + i * q, q, y.data() + i * w.ld);
      const int exponent = out_of_range(y);
      for (R& x : y) x = std::ldexp(x, -exponent);
      orthonormalise(team, y.data(), m, int(rounds), uint64_t(keys[seed.size(0) == 1 ? 0 : b]), w, total.data());
      R* out = static_cast<R*>(Q.mutable_data_ptr()) + b * m * q;
      double* triangle = static_cast<double*>(factor.mutable_data_ptr()) + b * q * q;
      for (int64_t i = 0; i < m; ++i) std::copy_n(y.data() + i * w.ld, q, out + i * q);
      for (int64_t i = 0; i < q; ++i)
        for (int64_t j = 0; j < q; ++j) triangle[i * q + j] = j < i ? 0 : std::ldexp(total[i * w.ld + j], exponent);
    });
  });
  return {Q, factor};
}

// LAPACK refuses a batch for one matrix with NaN or Inf: it gets zeros in its place, and NaN in its result.
std::tuple<Tensor, Tensor, Tensor> wide_svd(const Tensor& factor) {
  const int64_t batch = factor.size(0), q = factor.size(1);
  const Tensor checked = torch::stable::clone(factor);
  std::vector<bool> bad(batch);
  for (int64_t b = 0; b < batch; ++b) {
    double* const begin = data_of<double>(checked) + b * q * q;
    bad[b] = !std::all_of(begin, begin + q * q, [](double x) { return std::isfinite(x); });
    if (bad[b]) std::fill_n(begin, q * q, 0.0);
  }
  const LibrarySvd svd(checked);
  const Tensor V = torch::stable::contiguous(torch::stable::transpose(svd.vh, 1, 2));
  for (int64_t b = 0; b < batch; ++b) {
    if (!bad[b]) continue;
    for (const Tensor* t : {&svd.u, &V}) std::fill_n(data_of<double>(*t) + b * q * q, q * q, std::nan(""));
    std::fill_n(data_of<double>(svd.s) + b * q, q, std::nan(""));
  }
  return {svd.u, svd.s, V};
}

std::tuple<Tensor, Tensor, Tensor> rsvd_jacobi(Tensor factor) {
  check_batch(factor, "R");
  const int64_t batch = factor.size(0), q = factor.size(1);
  STD_TORCH_CHECK(factor.size(2) == q && factor.scalar_type() == ScalarType::Double, "R must be square and float64");
  Tensor U = new_tensor<3>(factor, {batch, q, q}, ScalarType::Double);
  Tensor S = new_tensor<2>(factor, {batch, q}, ScalarType::Double);
  Tensor V = new_tensor<3>(factor, {batch, q, q}, ScalarType::Double);
  const Tensor given = torch::stable::contiguous(factor);
  if (q == 0) return {U, S, V};
  if (q > kJacobiWidest && batch > 0) return wide_svd(given);
  for_each_matrix(batch, "rsvd_jacobi", [&](const Team&, int64_t b) {
    const int64_t ld = padded<double>(q);
    std::vector<double> w(q * ld), x(q * ld), scratch(4 * (q + 2));
    std::vector<int32_t> players(q + 1);
    const double* in = static_cast<const double*>(given.const_data_ptr()) + b * q * q;
    for (int64_t i = 0; i < q; ++i) std::copy_n(in + i * q, q, w.data() + i * ld);
    double* sigma = static_cast<double*>(S.mutable_data_ptr()) + b * q;
    jacobi(Jacobi{q, ld, w.data(), x.data(), sigma, kJacobiTolerance, scratch.data(), players.data()});
    double* u = static_cast<double*>(U.mutable_data_ptr()) + b * q * q;
    double* v = static_cast<double*>(V.mutable_data_ptr()) + b * q * q;
    for (int64_t i = 0; i < q; ++i)
      for (int64_t j = 0; j < q; ++j) u[i * q + j] = x[j * ld + i], v[i * q + j] = w[j * ld + i];
  });
  return {U, S, V};
}

Tensor rsvd_residual(Tensor A, Tensor U, Tensor S, Tensor Vh, Tensor needed) {
  check_factors(A, U, S, Vh, needed);
  const int64_t batch = A.size(0), m = A.size(1), n = A.size(2), k = U.size(2);
  Tensor out = new_tensor<1>(A, {batch}, ScalarType::Double);
  const Tensor left = torch::stable::contiguous(U), s = torch::stable::contiguous(S),
               right = torch::stable::contiguous(Vh), wanted = torch::stable::contiguous(needed);
  dispatch<Float16, BFloat16>(A.scalar_type(), "rsvd_residual", [&](auto element) {
    using T = decltype(element);
    using R = Accumulator<T>;
    for_each_matrix(batch, "rsvd_residual", [&](const Team& team, int64_t b) {
      double& value = static_cast<double*>(out.mutable_data_ptr())[b];
      value = 0;
      if (!static_cast<const bool*>(wanted.const_data_ptr())[b] || m == 0 || n == 0) return;
      std::vector<R> store(m * n);
      const Given<T> a{static_cast<const T*>(A.const_data_ptr()) + b * A.stride(0), m, n, A.stride(1), A.stride(2)};
      copy(Copy<T>{a, 0, m, 1.0, 1.0, store.data()});
      std::vector<double> l, r;
      value = explicit_residual(team, Source<R>{store.data(), m, n, n, 1, 0, 0},
                                static_cast<const R*>(left.const_data_ptr()) + b * m * k, k, 1,
                                static_cast<const R*>(s.const_data_ptr()) + b * k,
                                static_cast<const R*>(right.const_data_ptr()) + b * k * n, n, 1, k, l, r);
    });
  });
  return out;
}

}  // namespace
}  // namespace artent::rsvd

STABLE_TORCH_LIBRARY_IMPL(artent, CPU, m) {
  m.impl("rsvd_sketch", TORCH_BOX(&artent::rsvd::rsvd_sketch));
  m.impl("rsvd_orthonormalise", TORCH_BOX(&artent::rsvd::rsvd_orthonormalise));
  m.impl("rsvd_jacobi", TORCH_BOX(&artent::rsvd::rsvd_jacobi));
  m.impl("rsvd_residual", TORCH_BOX(&artent::rsvd::rsvd_residual));
}

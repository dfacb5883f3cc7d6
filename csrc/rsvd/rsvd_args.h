// Checks, sizes and results of the rsvd ops, for the CPU and CUDA files alike.
//
// People's mistakes are told in artent_ext/_rsvd_arguments.py; these checks only keep a direct call of torch.ops.artent
// from reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <limits>

namespace artent::rsvd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType working_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <size_t N>
Tensor new_tensor(const Tensor& like, const std::array<int64_t, N>& size, ScalarType type) {
  return torch::stable::new_empty(like, {size.data(), size.size()}, type);
}

inline void check_batch(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 3, name, " must be (B, rows, columns), got ", t.dim(), "-d");
}

inline void check_floating(const Tensor& t, const char* name) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, name, " must be float32 or float64, got ",
                  torch::headeronly::toString(type));
}

template <typename F>
void dispatch_floating(const Tensor& t, const char* name, const F& f) {
  check_floating(t, name);
  t.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

// Of rsvd_residual: factors of A, and which matrices to do.
inline void check_factors(const Tensor& A, const Tensor& U, const Tensor& S, const Tensor& Vh, const Tensor& needed) {
  check_batch(A, "A"), check_batch(U, "U"), check_batch(Vh, "Vh");
  const int64_t batch = A.size(0), k = U.size(2);
  const ScalarType type = working_type(A);
  STD_TORCH_CHECK(U.size(0) == batch && U.size(1) == A.size(1) && S.dim() == 2 && S.size(0) == batch &&
                      S.size(1) == k && Vh.size(0) == batch && Vh.size(1) == k && Vh.size(2) == A.size(2),
                  "U, S, Vh do not fit A");
  STD_TORCH_CHECK(U.scalar_type() == type && S.scalar_type() == type && Vh.scalar_type() == type,
                  "U, S, Vh must be float32 (float64 for float64 A)");
  STD_TORCH_CHECK(needed.scalar_type() == ScalarType::Bool && needed.dim() == 1 && needed.size(0) == batch,
                  "needed must be (B), bool");
}

inline void check_seed(const Tensor& seed, int64_t batch) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.dim() == 1, "seed must be a vector of int64");
  STD_TORCH_CHECK(seed.size(0) == 1 || seed.size(0) == batch, "seed: one for all matrices or one each, got ",
                  seed.size(0), " for ", batch);
}

// A call of rsvd: sizes and the tensors it returns.
struct Call {
  int64_t batch, m, n, k, q;
  Tensor U, S, Vh, residual;

  Call(const Tensor& A, int64_t rank, int64_t oversample, int64_t power_iters, const Tensor& seed) {
    check_batch(A, "A");
    STD_TORCH_CHECK(rank >= 0 && oversample >= 0 && power_iters >= 0,
                    "rank, oversample and power_iters must be non-negative");
    batch = A.size(0), m = A.size(1), n = A.size(2);
    check_seed(seed, batch);
    k = std::min({rank, m, n});
    q = std::min({rank + std::min(oversample, std::numeric_limits<int64_t>::max() - rank), m, n});
    const ScalarType type = working_type(A);
    U = new_tensor<3>(A, {batch, m, k}, type);
    S = new_tensor<2>(A, {batch, k}, type);
    Vh = new_tensor<3>(A, {batch, k, n}, type);
    residual = new_tensor<1>(A, {batch}, ScalarType::Double);
  }

  // Nothing to compute: no matrix, or matrices without an element. A rank of 0 still has a residual.
  bool empty() const { return batch == 0 || m == 0 || n == 0; }
};

}  // namespace artent::rsvd

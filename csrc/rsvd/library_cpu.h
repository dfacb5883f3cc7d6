// torch's own SVD (LAPACK), through the dispatcher: where a sketch is so wide that a library's blocked algorithm wins.
// Never inside a parallel region.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <cmath>
#include <type_traits>

#include "rsvd_args.h"
#include "source_cpu.h"
#include "workspace_cpu.h"

namespace artent::rsvd {

struct LibrarySvd {
  Tensor u, s, vh;  // contiguous

  explicit LibrarySvd(const Tensor& matrix) {
    std::array<StableIValue, 3> stack{torch::stable::detail::from(matrix), torch::stable::detail::from(false),
                                      torch::stable::detail::from(std::nullopt)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_svd", "", stack.data(), TORCH_ABI_VERSION));
    u = torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]));
    s = torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[1]));
    vh = torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[2]));
  }
};

template <typename R>
R* data_of(const Tensor& t) {
  return static_cast<R*>(t.mutable_data_ptr());
}

// R = X Σ Wᵀ of the triangle in w.w (q×ld), left as jacobi leaves it: rows of w.w and w.x are columns of W and X.
template <typename R>
void library_small_svd(const Tensor& like, Workspace<R>& w) {
  const int64_t q = w.plan.q, ld = w.qr.ld;
  const Tensor triangle = new_tensor<2>(like, {q, q}, ScalarType::Double);
  for (int64_t i = 0; i < q; ++i) std::copy_n(w.w.data() + i * ld, q, data_of<double>(triangle) + i * q);
  const LibrarySvd svd(triangle);
  const double *x = data_of<double>(svd.u), *wh = data_of<double>(svd.vh);
  std::copy_n(data_of<double>(svd.s), q, w.sigma.data());
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < q; ++j) {
      w.w[i * ld + j] = wh[i * q + j];
      w.x[i * ld + j] = x[j * q + i];
    }
}

// The whole SVD of A, of which k triplets are kept; all singular values go into w.sigma.
template <typename R>
void library_svd(const Tensor& like, const Source<R>& a, bool wide, const Output<R>& out, Workspace<R>& w) {
  const int64_t k = w.plan.k;
  const Tensor dense =
      new_tensor<2>(like, {a.m, a.n}, std::is_same_v<R, double> ? ScalarType::Double : ScalarType::Float);
  for (int64_t i = 0; i < a.m; ++i)
    for (int64_t j = 0; j < a.n; ++j) data_of<R>(dense)[i * a.n + j] = a.data[i * a.row_stride + j * a.col_stride];
  const LibrarySvd svd(dense);
  const R *u = data_of<R>(svd.u), *vh = data_of<R>(svd.vh);
  w.sigma.assign(data_of<R>(svd.s), data_of<R>(svd.s) + a.n);
  for (int64_t i = 0; i < a.m; ++i)
    for (int64_t j = 0; j < k; ++j) (wide ? out.vh[j * a.m + i] : out.u[i * k + j]) = u[i * a.n + j];
  for (int64_t j = 0; j < k; ++j)
    for (int64_t i = 0; i < a.n; ++i) (wide ? out.u[i * k + j] : out.vh[j * a.n + i]) = vh[j * a.n + i];
}

}  // namespace artent::rsvd

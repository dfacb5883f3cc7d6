// The rsvd ops on CUDA: tensors in, launches on the current stream, tensors out. Nothing waits for the device.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/dispatch.h"
#include "../common/launch_cuda.h"
#include "parts.cuh"
#include "rsvd_args.h"
#include "small.cuh"

namespace artent::rsvd {
namespace {

using torch::stable::accelerator::DeviceGuard;

template <class Params>
void run(void (*kernel)(Params), const Launch& launch, const Params& p, const Tensor& on, const char* op) {
  launch_cuda(kernel, launch.blocks, launch.threads, launch.shared_bytes, p, on.get_device(), op);
}

Seeds seeds_of(const Tensor& seed) {
  return {static_cast<const int64_t*>(seed.const_data_ptr()), seed.size(0) == 1 ? 0 : 1};
}

double* doubles(Tensor& t) {
  return static_cast<double*>(t.mutable_data_ptr());
}

void check_cuda_seed(const Tensor& seed, const Tensor& like) {
  STD_TORCH_CHECK(seed.is_cuda() && seed.get_device() == like.get_device(), "seed must be on the matrices' device");
}

// A matrix's strides, of the transpose where it is wide.
Strides3 tall_strides(const Tensor& t, bool wide) {
  return {t.stride(0), t.stride(wide ? 2 : 1), t.stride(wide ? 1 : 2)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rsvd_small(Tensor A, int64_t rank, int64_t oversample, int64_t power_iters,
                                                      Tensor seed) {
  const DeviceGuard guard(A.get_device());
  Call call(A, rank, oversample, power_iters, seed);
  check_cuda_seed(seed, A);
  if (call.empty()) {
    call.residual = torch::stable::fill_(call.residual, 0.0);
    return {call.U, call.S, call.Vh, call.residual};
  }
  const bool wide = call.m < call.n;
  STD_TORCH_CHECK(std::max(call.m, call.n) <= kSmallSide && call.q <= kSmallWidth<float>, "rsvd_small: at most ",
                  kSmallSide, " rows and columns and a sketch of ", kSmallWidth<float>, ", got ", call.m, "×", call.n,
                  " and ", call.q);
  // A sketch of no columns still has a residual: one column that is not asked for finds the norm.
  const SmallShape shape{call.batch,  int(std::max(call.m, call.n)),     int(std::min(call.m, call.n)),
                         int(call.k), int(std::max<int64_t>(call.q, 1)), int(power_iters)};
  const Tensor seeds = torch::stable::contiguous(seed);
  Tensor panels = new_tensor<2>(A, {call.batch, small_panels(shape)}, working_type(A));
  Tensor triangles = new_tensor<4>(A, {call.batch, 2, shape.q, shape.q}, ScalarType::Double);
  Tensor& left = wide ? call.Vh : call.U;
  Tensor& right = wide ? call.U : call.Vh;
  const SmallParams p{shape,
                      A.const_data_ptr(),
                      tall_strides(A, wide),
                      seeds_of(seeds),
                      left.mutable_data_ptr(),
                      tall_strides(left, wide),
                      call.S.mutable_data_ptr(),
                      right.mutable_data_ptr(),
                      tall_strides(right, !wide),
                      doubles(call.residual),
                      panels.mutable_data_ptr(),
                      doubles(triangles)};
  dispatch<__half, __nv_bfloat16>(A.scalar_type(), "rsvd_small", [&](auto element) {
    using Element = decltype(element);
    STD_TORCH_CHECK(fits_small<Element>(shape), "rsvd_small: a sketch of at most 32 columns in float64, got ", call.q);
    run(rsvd_small_kernel<Element>, small_launch<Element>(shape), p, A, "rsvd_small");
  });
  return {call.U, call.S, call.Vh, call.residual};
}

Tensor rsvd_sketch(Tensor seed, int64_t rows, int64_t cols, ScalarType dtype) {
  const DeviceGuard guard(seed.get_device());
  check_seed(seed, seed.dim() == 1 ? seed.size(0) : 0);
  STD_TORCH_CHECK(rows >= 0 && cols >= 0, "rows and cols must be non-negative");
  Tensor out = new_tensor<3>(seed, {seed.size(0), rows, cols}, dtype);
  const Tensor seeds = torch::stable::contiguous(seed);
  const SketchParams p{
      {static_cast<const int64_t*>(seeds.const_data_ptr()), 1}, seed.size(0), rows, cols, out.mutable_data_ptr()};
  dispatch_floating(out, "dtype", [&](auto type) {
    run(rsvd_sketch_kernel<decltype(type)>, sketch_launch(p), p, out, "rsvd_sketch");
  });
  return out;
}

std::tuple<Tensor, Tensor> rsvd_orthonormalise(Tensor Y, int64_t rounds, Tensor seed) {
  const DeviceGuard guard(Y.get_device());
  check_batch(Y, "Y");
  const int64_t batch = Y.size(0), m = Y.size(1), q = Y.size(2);
  check_seed(seed, batch);
  check_cuda_seed(seed, Y);
  STD_TORCH_CHECK(m >= q, "Y must be tall, got ", m, "×", q);
  STD_TORCH_CHECK(q <= 4096, "Y must have at most 4096 columns, got ", q);
  STD_TORCH_CHECK(rounds >= 0 && rounds < 100, "rounds must be in 0 … 99");
  Tensor Q = new_tensor<3>(Y, {batch, m, q}, Y.scalar_type());
  Tensor R = new_tensor<3>(Y, {batch, q, q}, ScalarType::Double);
  if (batch == 0 || q == 0) return {Q, R};
  torch::stable::copy_(Q, Y);
  const Tensor seeds = torch::stable::contiguous(seed);
  const int64_t chunks = divide_up(m, chunk_rows(m));
  const bool shared = factor_in_shared(int(q));
  Tensor partial = new_tensor<3>(Y, {batch, chunks, packed(int(q))}, ScalarType::Double);
  Tensor triangle = new_tensor<2>(Y, {batch, triangle_size(int(q))}, Y.scalar_type());
  Tensor gram = new_tensor<2>(Y, {shared ? 0 : batch, packed(int(q)) + q}, ScalarType::Double);
  Tensor spare = new_tensor<3>(Y, {batch, q, q}, ScalarType::Double);
  Tensor finished = new_tensor<1>(Y, {batch}, ScalarType::Int);
  QrParams p{batch,
             m,
             int(q),
             int(chunks),
             0,
             rounds == 0,
             seeds_of(seeds),
             Q.mutable_data_ptr(),
             doubles(R),
             doubles(partial),
             triangle.mutable_data_ptr(),
             shared ? nullptr : doubles(gram),
             doubles(spare),
             static_cast<int32_t*>(finished.mutable_data_ptr())};
  dispatch_floating(Y, "Y", [&](auto type) {
    using Real = decltype(type);
    const int last = rounds == 0 ? kMaxRounds : int(rounds);
    for (int done = 0; done < last; ++done) {
      p.round = done;
      run(rsvd_gram_kernel<Real>, gram_launch(p), p, Y, "rsvd_orthonormalise");
      run(rsvd_factor_kernel<Real>, factor_launch(p), p, Y, "rsvd_orthonormalise");
      run(rsvd_substitute_kernel<Real>, substitute_launch<Real>(p), p, Y, "rsvd_orthonormalise");
    }
  });
  return {Q, R};
}

std::tuple<Tensor, Tensor, Tensor> rsvd_jacobi(Tensor R) {
  const DeviceGuard guard(R.get_device());
  check_batch(R, "R");
  const int64_t batch = R.size(0), q = R.size(1);
  STD_TORCH_CHECK(R.size(2) == q && R.scalar_type() == ScalarType::Double, "R must be square and float64");
  STD_TORCH_CHECK(q <= 4096, "R must be at most 4096×4096, got ", q);
  Tensor U = new_tensor<3>(R, {batch, q, q}, ScalarType::Double);
  Tensor S = new_tensor<2>(R, {batch, q}, ScalarType::Double);
  Tensor V = new_tensor<3>(R, {batch, q, q}, ScalarType::Double);
  if (batch == 0 || q == 0) return {U, S, V};
  const Tensor given = torch::stable::contiguous(R);
  const bool shared = jacobi_in_shared(int(q));
  Tensor scratch = new_tensor<3>(R, {shared ? 0 : batch, 2, jacobi_square(int(q))}, ScalarType::Double);
  const JacobiParams p{batch,
                       int(q),
                       static_cast<const double*>(given.const_data_ptr()),
                       doubles(U),
                       doubles(S),
                       doubles(V),
                       shared ? nullptr : doubles(scratch)};
  run(rsvd_jacobi_kernel, jacobi_launch(p), p, R, "rsvd_jacobi");
  return {U, S, V};
}

Tensor rsvd_residual(Tensor A, Tensor U, Tensor S, Tensor Vh, Tensor needed) {
  const DeviceGuard guard(A.get_device());
  check_factors(A, U, S, Vh, needed);
  const int64_t batch = A.size(0), m = A.size(1), n = A.size(2), k = U.size(2);
  for (const Tensor* t : {&U, &S, &Vh, &needed})
    STD_TORCH_CHECK(t->is_cuda() && t->get_device() == A.get_device(), "U, S, Vh, needed must be on A's device");
  STD_TORCH_CHECK(std::max(m, n) < (int64_t(1) << 30) && k < (1 << 30), "A has too many rows or columns");
  Tensor out = new_tensor<1>(A, {batch}, ScalarType::Double);
  const Tensor s = torch::stable::contiguous(S), wanted = torch::stable::contiguous(needed);
  if (batch == 0) return out;
  Tensor partial = new_tensor<2>(A, {batch, residual_tiles(m, n)}, ScalarType::Double);
  const ResidualParams p{batch,
                         m,
                         n,
                         int(k),
                         A.const_data_ptr(),
                         tall_strides(A, false),
                         U.const_data_ptr(),
                         tall_strides(U, false),
                         s.const_data_ptr(),
                         Vh.const_data_ptr(),
                         tall_strides(Vh, true),
                         static_cast<const bool*>(wanted.const_data_ptr()),
                         doubles(partial),
                         doubles(out)};
  dispatch<__half, __nv_bfloat16>(A.scalar_type(), "rsvd_residual", [&](auto element) {
    run(rsvd_residual_kernel<decltype(element)>, residual_launch(p), p, A, "rsvd_residual");
  });
  run(rsvd_residual_sum_kernel, {batch, kWarpLanes, 0}, p, A, "rsvd_residual");
  return out;
}

}  // namespace
}  // namespace artent::rsvd

STABLE_TORCH_LIBRARY_IMPL(artent, CUDA, m) {
  m.impl("rsvd_small", TORCH_BOX(&artent::rsvd::rsvd_small));
  m.impl("rsvd_sketch", TORCH_BOX(&artent::rsvd::rsvd_sketch));
  m.impl("rsvd_orthonormalise", TORCH_BOX(&artent::rsvd::rsvd_orthonormalise));
  m.impl("rsvd_jacobi", TORCH_BOX(&artent::rsvd::rsvd_jacobi));
  m.impl("rsvd_residual", TORCH_BOX(&artent::rsvd::rsvd_residual));
}

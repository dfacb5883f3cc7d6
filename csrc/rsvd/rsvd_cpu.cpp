// rsvd on the CPU: tensors in, matrices shared out over threads (or each matrix over all of them), tensors out.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <exception>
#include <tuple>

#include "../common/dispatch.h"
#include "rsvd_args.h"
#include "single_cpu.h"

namespace artent::rsvd {
namespace {

template <typename T>
Given<T> matrix(const Tensor& A, int64_t b) {
  return {static_cast<const T*>(A.const_data_ptr()) + b * A.stride(0), A.size(1), A.size(2), A.stride(1), A.stride(2)};
}

template <typename T>
void run(const Tensor& A, const Plan& plan, const Tensor& seed, const Tensor& U, const Tensor& S, const Tensor& Vh,
         const Tensor& residual) {
  using R = Accumulator<T>;
  const int64_t batch = A.size(0), m = A.size(1), n = A.size(2), shorter = std::min(m, n);
  const auto* seeds = static_cast<const int64_t*>(seed.const_data_ptr());
  const bool one_seed = seed.size(0) == 1;
  const int64_t ld = padded<R>(plan.sketch());
  std::vector<R> shared(one_seed ? shorter * ld : 0);
  if (one_seed) fill_sketch(Team{true}, uint64_t(seeds[0]), shorter, plan.sketch(), ld, shared.data());
  const auto one = [&](const Team& team, int64_t b, Workspace<R>& w) {
    const uint64_t key = uint64_t(seeds[one_seed ? 0 : b]);
    if (!one_seed) {
      w.sketch.resize(shorter * ld);
      fill_sketch(team, key, shorter, plan.sketch(), ld, w.sketch.data());
    }
    const Output<R> out{
        static_cast<R*>(U.mutable_data_ptr()) + b * m * plan.k, static_cast<R*>(S.mutable_data_ptr()) + b * plan.k,
        static_cast<R*>(Vh.mutable_data_ptr()) + b * plan.k * n, static_cast<double*>(residual.mutable_data_ptr()) + b};
    decompose(team, A, matrix<T>(A, b), key, one_seed ? shared.data() : w.sketch.data(), out, w);
  };
  // Either way the same operations in the same order a number: what is chosen here changes the time only. LAPACK brings
  // threads of its own.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t even = batch % threads == 0 || batch >= 4 * threads ? batch : batch - batch % threads;
  const int64_t spread = plan.library() ? 0 : even;
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, spread, 1, [&](int64_t begin, int64_t end) {
    try {  // an exception must not leave a parallel region
      Workspace<R> w(plan);
      for (int64_t b = begin; b < end; ++b) one(Team{false}, b, w);
    } catch (const std::exception&) {
      failed = true;
    }
  });
  STD_TORCH_CHECK(!failed, "rsvd: out of memory for a sketch of ", plan.q, " columns");
  if (spread == batch) return;
  Workspace<R> w(plan);
  for (int64_t b = spread; b < batch; ++b) one(Team{true}, b, w);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rsvd(Tensor A, int64_t rank, int64_t oversample, int64_t power_iters,
                                                Tensor seed) {
  const Call call(A, rank, oversample, power_iters, seed);
  if (call.batch > 0 && call.empty()) {
    Tensor residual = call.residual;
    torch::stable::zero_(residual);
  }
  if (call.empty()) return {call.U, call.S, call.Vh, call.residual};
  const Tensor seeds = torch::stable::contiguous(seed);
  const Plan plan{call.k, call.q, int(power_iters), std::min(call.m, call.n)};
  dispatch<Float16, BFloat16>(A.scalar_type(), "rsvd", [&](auto type) {
    run<decltype(type)>(A, plan, seeds, call.U, call.S, call.Vh, call.residual);
  });
  return {call.U, call.S, call.Vh, call.residual};
}

}  // namespace
}  // namespace artent::rsvd

STABLE_TORCH_LIBRARY_IMPL(artent, CPU, m) {
  m.impl("rsvd", TORCH_BOX(&artent::rsvd::rsvd));
}

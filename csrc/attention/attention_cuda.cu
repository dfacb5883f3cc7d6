// attention_stats on CUDA: tensors in, one launch forward and two backward on the current stream, tensors out.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/dispatch.h"
#include "../common/launch_cuda.h"
#include "attention_args.h"
#include "stats_kernel.cuh"

namespace artent::attention {
namespace {

std::tuple<Tensor, Tensor, Tensor> attention_stats_cuda(Tensor query, Tensor key, std::optional<Tensor> attn_mask,
                                                        std::optional<Tensor> key_range,
                                                        std::optional<int64_t> diagonal, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device());
  const ForwardCall call(query, key, attn_mask, key_range, diagonal, scale);
  dispatch<__half, __nv_bfloat16>(query.scalar_type(), "attention_stats", [&](auto element) {
    using Element = decltype(element);
    const Launch launch = forward_launch<Element>(call.p.shape);
    launch_cuda(stats_forward_kernel<Element>, launch.blocks, launch.threads, launch.shared_bytes, call.p,
                query.get_device(), "attention_stats");
  });
  return {call.lse, call.entropy, call.purity};
}

std::tuple<Tensor, Tensor> attention_stats_backward_cuda(
    std::optional<Tensor> grad_lse, std::optional<Tensor> grad_entropy, std::optional<Tensor> grad_purity, Tensor query,
    Tensor key, Tensor lse, Tensor entropy, Tensor purity, std::optional<Tensor> attn_mask,
    std::optional<Tensor> key_range, std::optional<int64_t> diagonal, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device());
  const BackwardCall call(grad_lse, grad_entropy, grad_purity, query, key, lse, entropy, purity, attn_mask, key_range,
                          diagonal, scale);
  dispatch<__half, __nv_bfloat16>(query.scalar_type(), "attention_stats", [&](auto element) {
    using Element = decltype(element);
    const auto run = [&](auto kernel, const Launch& launch) {
      launch_cuda(kernel, launch.blocks, launch.threads, launch.shared_bytes, call.p, query.get_device(),
                  "attention_stats_backward");
    };
    run(stats_backward_kernel<Element, false>, backward_launch<Element, false>(call.p.shape));
    run(stats_backward_kernel<Element, true>, backward_launch<Element, true>(call.p.shape));
  });
  return {call.grad_query, call.grad_key};
}

}  // namespace
}  // namespace artent::attention

STABLE_TORCH_LIBRARY_IMPL(artent, CUDA, m) {
  m.impl("attention_stats", TORCH_BOX(&artent::attention::attention_stats_cuda));
  m.impl("attention_stats_backward", TORCH_BOX(&artent::attention::attention_stats_backward_cuda));
}

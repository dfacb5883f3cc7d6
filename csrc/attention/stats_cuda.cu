// attention_stats on CUDA: tensors in, one launch forward and two backward on the current stream, tensors out.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/launch_cuda.h"
#include "stats_args.h"
#include "stats_kernel.cuh"

namespace artent::attention {
namespace {

template <class F>
void dispatch_cuda(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, "attention_stats: unsupported dtype ", torch::headeronly::toString(type));
  }
}

std::tuple<Tensor, Tensor, Tensor> attention_stats_cuda(Tensor query, Tensor key, std::optional<Tensor> attn_mask,
                                                        std::optional<Tensor> key_range,
                                                        std::optional<int64_t> diagonal, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device());
  const ScalarType accumulator = accumulator_of(query);
  StatsForward p{};
  p.shape = shape_of(query, key);
  p.visibility = visibility_of(p.shape, accumulator, attn_mask, key_range, diagonal);
  p.scale = scale;
  p.query = query.const_data_ptr();
  p.query_strides = strides_of(query);
  p.key = key.const_data_ptr();
  p.key_strides = strides_of(key);
  Tensor lse = new_rows(query, accumulator), entropy = new_rows(query, accumulator),
         purity = new_rows(query, accumulator);
  p.lse = lse.mutable_data_ptr();
  p.entropy = entropy.mutable_data_ptr();
  p.purity = purity.mutable_data_ptr();
  dispatch_cuda(query.scalar_type(), [&](auto element) {
    using Element = decltype(element);
    const Launch launch = forward_launch<Element>(p.shape);
    launch_cuda(stats_forward_kernel<Element>, launch.blocks, launch.threads, launch.shared_bytes, p,
                query.get_device(), "attention_stats");
  });
  return {lse, entropy, purity};
}

std::tuple<Tensor, Tensor> attention_stats_backward_cuda(
    std::optional<Tensor> grad_lse, std::optional<Tensor> grad_entropy, std::optional<Tensor> grad_purity, Tensor query,
    Tensor key, Tensor lse, Tensor entropy, Tensor purity, std::optional<Tensor> attn_mask,
    std::optional<Tensor> key_range, std::optional<int64_t> diagonal, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device());
  const ScalarType accumulator = accumulator_of(query);
  StatsBackward p{};
  p.shape = shape_of(query, key);
  p.visibility = visibility_of(p.shape, accumulator, attn_mask, key_range, diagonal);
  p.scale = scale;
  p.query = query.const_data_ptr();
  p.query_strides = strides_of(query);
  p.key = key.const_data_ptr();
  p.key_strides = strides_of(key);
  Tensor keep[6];
  p.lse = rows_pointer(lse, p.shape, accumulator, keep[0], "lse");
  p.entropy = rows_pointer(entropy, p.shape, accumulator, keep[1], "entropy");
  p.purity = rows_pointer(purity, p.shape, accumulator, keep[2], "purity");
  p.grad_lse = rows_pointer(grad_lse, p.shape, accumulator, keep[3], "grad_lse");
  p.grad_entropy = rows_pointer(grad_entropy, p.shape, accumulator, keep[4], "grad_entropy");
  p.grad_purity = rows_pointer(grad_purity, p.shape, accumulator, keep[5], "grad_purity");
  Tensor grad_query = new_like(query), grad_key = new_like(key);
  p.grad_query = grad_query.mutable_data_ptr();
  p.grad_key = grad_key.mutable_data_ptr();
  dispatch_cuda(query.scalar_type(), [&](auto element) {
    using Element = decltype(element);
    const auto run = [&](auto kernel, const Launch& launch) {
      launch_cuda(kernel, launch.blocks, launch.threads, launch.shared_bytes, p, query.get_device(),
                  "attention_stats_backward");
    };
    run(stats_backward_kernel<Element, false>, backward_launch<Element, false>(p.shape));
    run(stats_backward_kernel<Element, true>, backward_launch<Element, true>(p.shape));
  });
  return {grad_query, grad_key};
}

}  // namespace
}  // namespace artent::attention

STABLE_TORCH_LIBRARY_IMPL(artent, CUDA, m) {
  m.impl("attention_stats", TORCH_BOX(&artent::attention::attention_stats_cuda));
  m.impl("attention_stats_backward", TORCH_BOX(&artent::attention::attention_stats_backward_cuda));
}

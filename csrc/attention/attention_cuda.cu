// Attention on CUDA: tensors in, kernels on the current stream, tensors out.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/dispatch.h"
#include "attention_queue.h"

namespace artent::attention {
namespace {

// f(element, queue) for the dtype of `query`, with its device current.
template <class F>
void on_device_of(const Tensor& query, const char* name, const F& f) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device());
  CudaQueue queue(query, name);
  dispatch<__half, __nv_bfloat16>(query.scalar_type(), name, [&](auto element) { f(element, queue); });
}

ForwardCall forward(const Tensor& query, const Tensor& key, const std::optional<Tensor>& value,
                    const std::optional<Tensor>& attn_mask, const std::optional<Tensor>& key_range,
                    std::optional<int64_t> diagonal, double scale, double softcap, const char* name) {
  ForwardCall call(query, key, value, attn_mask, key_range, diagonal, scale, softcap);
  on_device_of(query, name, [&](auto element, CudaQueue& queue) { run_forward<decltype(element)>(queue, call.p); });
  torch::stable::zero_(call.lse_low);  // the kernels do not know it
  return call;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_stats_cuda(Tensor query, Tensor key,
                                                                std::optional<Tensor> attn_mask,
                                                                std::optional<Tensor> key_range,
                                                                std::optional<int64_t> diagonal, double scale,
                                                                double softcap) {
  const ForwardCall call =
      forward(query, key, std::nullopt, attn_mask, key_range, diagonal, scale, softcap, "attention_stats");
  return {call.lse, call.entropy, call.purity, call.lse_low};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_forward_cuda(Tensor query, Tensor key, Tensor value,
                                                                          std::optional<Tensor> attn_mask,
                                                                          std::optional<Tensor> key_range,
                                                                          std::optional<int64_t> diagonal, double scale,
                                                                          double softcap) {
  const ForwardCall call =
      forward(query, key, value, attn_mask, key_range, diagonal, scale, softcap, "attention_forward");
  return {*call.out, call.lse, call.entropy, call.purity, call.lse_low};
}

Tensor attention_apply_cuda(Tensor query, Tensor key, Tensor x, Tensor lse, std::optional<Tensor> lse_low,
                            bool transpose, std::optional<Tensor> attn_mask, std::optional<Tensor> key_range,
                            std::optional<int64_t> diagonal, double scale, double softcap) {
  const ApplyCall call(query, key, x, lse, lse_low, transpose, attn_mask, key_range, diagonal, scale, softcap);
  on_device_of(query, "attention_apply",
               [&](auto element, CudaQueue& queue) { run_apply<decltype(element)>(queue, call.p); });
  return call.out;
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_cuda(
    std::optional<Tensor> grad_out, std::optional<Tensor> value, std::optional<Tensor> delta,
    std::optional<Tensor> grad_lse, std::optional<Tensor> grad_entropy, std::optional<Tensor> grad_purity, Tensor query,
    Tensor key, Tensor lse, Tensor entropy, Tensor purity, std::optional<Tensor> lse_low,
    std::optional<Tensor> attn_mask, std::optional<Tensor> key_range, std::optional<int64_t> diagonal, double scale,
    double softcap, bool needs_value) {
  const BackwardCall call(grad_out, value, delta, grad_lse, grad_entropy, grad_purity, query, key, lse, entropy, purity,
                          lse_low, attn_mask, key_range, diagonal, scale, softcap, needs_value);
  on_device_of(query, "attention_backward",
               [&](auto element, CudaQueue& queue) { run_backward<decltype(element)>(queue, call.p); });
  return {call.grad_query, call.grad_key, call.grad_value};
}

}  // namespace
}  // namespace artent::attention

STABLE_TORCH_LIBRARY_IMPL(artent, CUDA, m) {
  m.impl("attention_stats", TORCH_BOX(&artent::attention::attention_stats_cuda));
  m.impl("attention_forward", TORCH_BOX(&artent::attention::attention_forward_cuda));
  m.impl("attention_apply", TORCH_BOX(&artent::attention::attention_apply_cuda));
  m.impl("attention_backward", TORCH_BOX(&artent::attention::attention_backward_cuda));
}

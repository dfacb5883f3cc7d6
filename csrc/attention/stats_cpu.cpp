// attention_stats on the CPU: tensors in, blocks shared out over threads, tensors out.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <exception>
#include <tuple>

#include "../common/dispatch.h"
#include "stats_args.h"
#include "stats_cpu_kernel.h"

namespace artent::attention {
namespace {

int64_t blocks(int64_t length, int64_t size) {
  return (length + size - 1) / size;
}

// Runs body(b, h, block, workspace) for every block. Under a causal mask late blocks see more keys: blocks are dealt
// first, last, second, last but one, …, so that equal shares of the list are equal shares of the work.
template <typename T, typename Body>
void for_each_block(int64_t batch, int64_t heads, int64_t count, const Body& body) {
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, batch * heads * count, 1, [&](int64_t begin, int64_t end) {
    try {  // an exception must not leave a parallel region
      Workspace<T> workspace;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t turn = item % count, block = turn % 2 == 0 ? turn / 2 : count - 1 - turn / 2;
        body(item / count / heads, item / count % heads, block, workspace);
      }
    } catch (const std::exception&) {
      failed = true;
    }
  });
  STD_TORCH_CHECK(!failed, "attention_stats: out of memory for a tile of logits");
}

std::tuple<Tensor, Tensor, Tensor> attention_stats(Tensor query, Tensor key, std::optional<Tensor> attn_mask,
                                                   std::optional<Tensor> key_range, std::optional<int64_t> diagonal,
                                                   double scale) {
  const ForwardCall call(query, key, attn_mask, key_range, diagonal, scale);
  dispatch<Float16, BFloat16>(query.scalar_type(), "attention_stats", [&](auto type) {
    using T = decltype(type);
    for_each_block<T>(call.p.shape.batch, call.p.shape.heads, blocks(call.p.shape.queries, kQueryTile),
                      [&](int64_t b, int64_t h, int64_t block, Workspace<T>& w) {
                        forward_block<T>(call.p, b, h, block * kQueryTile, w);
                      });
  });
  return {call.lse, call.entropy, call.purity};
}

std::tuple<Tensor, Tensor> attention_stats_backward(std::optional<Tensor> grad_lse, std::optional<Tensor> grad_entropy,
                                                    std::optional<Tensor> grad_purity, Tensor query, Tensor key,
                                                    Tensor lse, Tensor entropy, Tensor purity,
                                                    std::optional<Tensor> attn_mask, std::optional<Tensor> key_range,
                                                    std::optional<int64_t> diagonal, double scale) {
  const BackwardCall call(grad_lse, grad_entropy, grad_purity, query, key, lse, entropy, purity, attn_mask, key_range,
                          diagonal, scale);
  dispatch<Float16, BFloat16>(query.scalar_type(), "attention_stats", [&](auto type) {
    using T = decltype(type);
    for_each_block<T>(call.p.shape.batch, call.p.shape.heads, blocks(call.p.shape.queries, kQueryTile),
                      [&](int64_t b, int64_t h, int64_t block, Workspace<T>& w) {
                        backward_query_block<T>(call.p, b, h, block * kQueryTile, w);
                      });
    for_each_block<T>(call.p.shape.batch, call.p.shape.key_heads, blocks(call.p.shape.keys, kKeyBlock),
                      [&](int64_t b, int64_t hk, int64_t block, Workspace<T>& w) {
                        backward_key_block<T>(call.p, b, hk, block * kKeyBlock, w);
                      });
  });
  return {call.grad_query, call.grad_key};
}

}  // namespace
}  // namespace artent::attention

STABLE_TORCH_LIBRARY_IMPL(artent, CPU, m) {
  m.impl("attention_stats", TORCH_BOX(&artent::attention::attention_stats));
  m.impl("attention_stats_backward", TORCH_BOX(&artent::attention::attention_stats_backward));
}

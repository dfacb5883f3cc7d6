// The attention ops on the CPU: tensors in, blocks shared out over threads, tensors out.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <exception>
#include <tuple>

#include "../common/dispatch.h"
#include "apply_cpu.h"
#include "attention_args.h"
#include "backward_cpu.h"
#include "forward_cpu.h"

namespace artent::attention {
namespace {

// Runs body(b, h, block, workspace) for every block. Under a causal mask late blocks see more keys: blocks are dealt
// first, last, second, last but one, …, so that equal shares of the list are equal shares of the work.
template <typename Workspace, typename Body>
void for_each_block(int64_t batch, int64_t heads, int64_t count, const Body& body) {
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, batch * heads * count, 1, [&](int64_t begin, int64_t end) {
    try {  // an exception must not leave a parallel region
      Workspace workspace;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t turn = item % count, block = turn % 2 == 0 ? turn / 2 : count - 1 - turn / 2;
        body(item / count / heads, item / count % heads, block, workspace);
      }
    } catch (const std::exception&) {
      failed = true;
    }
  });
  STD_TORCH_CHECK(!failed, "attention: out of memory for a tile of logits");
}

// The keys that any query of `heads` heads from h on sees.
Interval keys_seen(const Logits& a, int64_t b, int64_t h, int64_t heads) {
  const Interval keys{0, a.shape.keys};
  Interval seen{0, 0};
  for (int64_t head = h; head < h + heads; ++head) {
    for (int64_t i = a.shape.queries - 1; i >= 0 && seen.length() < keys.length(); --i)
      seen = hull(seen, key_interval(a.visibility, keys.end, b, head, i));
  }
  return seen;
}

// Whether the rows of x that blocks of queries or of keys stream past them may hold NaN or an infinity. Once for the
// call: every block would have to look for itself, as it does where there is only one.
template <typename X>
bool may_hold_not_finite(const Logits& a, const Columns& x, bool owns_keys) {
  const Shape& n = a.shape;
  if (x.columns == 0) return false;
  if (x.group * blocks(owns_keys ? n.keys : n.queries, kBlock) < 2) return true;
  using Buffer = std::vector<Accumulator<X>>;
  std::atomic<bool> found{false};
  for_each_block<Buffer>(n.batch, n.heads / x.group, 1, [&](int64_t b, int64_t h, int64_t, Buffer& buffer) {
    const Interval rows = owns_keys ? Interval{0, n.queries} : keys_seen(a, b, h * x.group, x.group);
    for (int64_t first = rows.start; first < rows.end && !found; first += kChunk) {
      const int64_t count = std::min(kChunk, rows.end - first);
      const auto here = rows_of<X>(x.data, x.strides, b, h, first, count, x.columns, buffer);
      if (not_finite(here, count, x.columns)) found = true;
    }
  });
  return found;
}

void run_forward(const ForwardCall& call, ScalarType type) {
  dispatch<Float16, BFloat16>(type, "attention", [&](auto element) {
    using T = decltype(element);
    const Shape& n = call.p.a.shape;
    const bool suspect = may_hold_not_finite<T>(call.p.a, call.p.value, false);
    for_each_block<ForwardWorkspace<T>>(n.batch, n.heads, blocks(n.queries, kBlock),
                                        [&](int64_t b, int64_t h, int64_t block, ForwardWorkspace<T>& w) {
                                          forward_block<T>(call.p, suspect, b, h, block, w);
                                        });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_stats(Tensor query, Tensor key, std::optional<Tensor> attn_mask,
                                                           std::optional<Tensor> key_range,
                                                           std::optional<int64_t> diagonal, double scale,
                                                           double softcap) {
  const ForwardCall call(query, key, std::nullopt, attn_mask, key_range, diagonal, scale, softcap);
  run_forward(call, query.scalar_type());
  return {call.lse, call.entropy, call.purity, call.lse_low};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_forward(Tensor query, Tensor key, Tensor value,
                                                                     std::optional<Tensor> attn_mask,
                                                                     std::optional<Tensor> key_range,
                                                                     std::optional<int64_t> diagonal, double scale,
                                                                     double softcap) {
  const ForwardCall call(query, key, value, attn_mask, key_range, diagonal, scale, softcap);
  run_forward(call, query.scalar_type());
  return {*call.out, call.lse, call.entropy, call.purity, call.lse_low};
}

// Every row's lse, with what it lacks where that matters.
template <typename T>
RowLse<Accumulator<T>> refined(const Logits& a, const void* lse, const void* lse_low) {
  RowLse<Accumulator<T>> rows(lse, lse_low);
  if (!rows.prepare(a.shape.batch * a.shape.heads * a.shape.queries)) return rows;
  for_each_block<ForwardWorkspace<T>>(
      a.shape.batch, a.shape.heads, blocks(a.shape.queries, kBlock),
      [&](int64_t b, int64_t h, int64_t block, ForwardWorkspace<T>& w) { refine_block<T>(a, b, h, block, rows, w); });
  return rows;
}

template <typename T>
StreamedQueries<Accumulator<T>> streamed_queries(const Logits& a) {
  StreamedQueries<Accumulator<T>> queries(a.shape);
  torch::stable::parallel_for(0, int64_t(queries.seen.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / queries.chunks;
      queries.template fill<T>(a, head / queries.heads, head % queries.heads, item % queries.chunks);
    }
  });
  return queries;
}

template <typename T, typename X>
void run_apply(const Apply& p) {
  using Workspace = ApplyWorkspace<T, X>;
  const Shape& n = p.a.shape;
  const auto rows = refined<T>(p.a, p.lse, p.lse_low);
  const auto queries = p.transpose ? streamed_queries<T>(p.a) : StreamedQueries<Accumulator<T>>(Shape{});
  const bool suspect = may_hold_not_finite<X>(p.a, p.x, p.transpose);
  for_each_block<Workspace>(n.batch, n.heads, blocks(p.transpose ? n.keys : n.queries, kBlock),
                            [&](int64_t b, int64_t h, int64_t block, Workspace& w) {
                              if (p.transpose) {
                                apply_block<true>(p, rows, queries, suspect, b, h, block, w);
                              } else {
                                apply_block<false>(p, rows, queries, suspect, b, h, block, w);
                              }
                            });
}

Tensor attention_apply(Tensor query, Tensor key, Tensor x, Tensor lse, std::optional<Tensor> lse_low, bool transpose,
                       std::optional<Tensor> attn_mask, std::optional<Tensor> key_range,
                       std::optional<int64_t> diagonal, double scale, double softcap) {
  const ApplyCall call(query, key, x, lse, lse_low, transpose, attn_mask, key_range, diagonal, scale, softcap);
  dispatch<Float16, BFloat16>(query.scalar_type(), "attention_apply", [&](auto element) {
    using T = decltype(element);
    if (call.p.x_is_accumulator) {
      run_apply<T, Accumulator<T>>(call.p);
    } else {
      run_apply<T, T>(call.p);
    }
  });
  return call.out;
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(std::optional<Tensor> grad_out, std::optional<Tensor> value,
                                                      std::optional<Tensor> delta, std::optional<Tensor> grad_lse,
                                                      std::optional<Tensor> grad_entropy,
                                                      std::optional<Tensor> grad_purity, Tensor query, Tensor key,
                                                      Tensor lse, Tensor entropy, Tensor purity,
                                                      std::optional<Tensor> lse_low, std::optional<Tensor> attn_mask,
                                                      std::optional<Tensor> key_range, std::optional<int64_t> diagonal,
                                                      double scale, double softcap, bool needs_value) {
  const BackwardCall call(grad_out, value, delta, grad_lse, grad_entropy, grad_purity, query, key, lse, entropy, purity,
                          lse_low, attn_mask, key_range, diagonal, scale, softcap, needs_value);
  dispatch<Float16, BFloat16>(query.scalar_type(), "attention_backward", [&](auto element) {
    using T = decltype(element);
    using Workspace = BackwardWorkspace<T>;
    const Shape& n = call.p.a.shape;
    const auto rows = refined<T>(call.p.a, call.p.lse, call.p.lse_low);
    const auto queries = streamed_queries<T>(call.p.a);
    const Columns keys{call.p.a.key, call.p.a.key_strides, n.dim, n.heads / n.key_heads};
    const Suspects suspects{may_hold_not_finite<Accumulator<T>>(call.p.a, queries.columns(), true),
                            may_hold_not_finite<T>(call.p.a, keys, false),
                            call.p.grad_value != nullptr && may_hold_not_finite<T>(call.p.a, call.p.grad_out, true)};
    for_each_block<Workspace>(n.batch, n.heads, blocks(n.queries, kBlock),
                              [&](int64_t b, int64_t h, int64_t block, Workspace& w) {
                                backward_query_block<T>(call.p, rows, suspects, b, h, block, w);
                              });
    for_each_block<Workspace>(n.batch, n.key_heads, blocks(n.keys, kBlock),
                              [&](int64_t b, int64_t hk, int64_t block, Workspace& w) {
                                backward_key_block<T>(call.p, rows, queries, suspects, b, hk, block, w);
                              });
  });
  return {call.grad_query, call.grad_key, call.grad_value};
}

}  // namespace
}  // namespace artent::attention

STABLE_TORCH_LIBRARY_IMPL(artent, CPU, m) {
  m.impl("attention_stats", TORCH_BOX(&artent::attention::attention_stats));
  m.impl("attention_forward", TORCH_BOX(&artent::attention::attention_forward));
  m.impl("attention_apply", TORCH_BOX(&artent::attention::attention_apply));
  m.impl("attention_backward", TORCH_BOX(&artent::attention::attention_backward));
}

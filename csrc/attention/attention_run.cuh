// Which kernels an operation launches, for which sizes. A Queue launches them: csrc/attention/attention_queue.h's on a
// CUDA stream, the tests' on a simulated machine. No torch.
#pragma once

#include <limits>

#include "product.h"
#include "scalar_product.cuh"
#include "scalar_stats.cuh"
#include "tensor_forward.cuh"
#include "tensor_product.cuh"

namespace artent::attention {

inline bool fits_tensor_tiles(const Shape& n) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;  // rows, with room for a tile past the end
  return n.dim >= 1 && n.dim <= tensor::kMaxDim && n.queries <= kMost && n.keys * n.heads <= kMost &&
         n.queries * n.heads <= kMost;
}

// False where the device's shared memory is too small.
template <class Element, class XElement, bool kOwnsKeys, bool kGradient, int kColumns, class Queue>
bool run_tensor_product(Queue& queue, const Product& p) {
  using Tile = tensor::ProductTile<Element, XElement, kGradient, kColumns>;
  const int shares = tensor::product_shares<Tile>(p, queue.multiprocessors());
  const Launch launch = tensor::product_launch<Element, Tile, kOwnsKeys>(p, shares);
  if (launch.shared_bytes > queue.shared_limit()) return false;
  tensor::ProductParams params{p, {shares, nullptr}, nullptr};
  if (kOwnsKeys && p.a.visibility.key_range != nullptr) {
    const int64_t tiles = tensor::hull_tiles(p.a.shape, Tile::kOther);
    int* hulls = reinterpret_cast<int*>(queue.workspace(4 * tiles));
    const Launch hull_launch{tensor::divide_up(tiles, tensor::kWarps), tensor::kThreads, 0};
    queue.launch(tensor::hull_kernel<Tile::kOther>, hull_launch, tensor::HullParams{p.a.shape, p.a.visibility, hulls});
    params.hulls = hulls;
  }
  if (shares > 1) params.shares.workspace = queue.workspace(shares * tensor::product_elements(p));
  queue.launch(tensor::product_kernel<Element, XElement, kOwnsKeys, kGradient, kColumns>, launch, params);
  if (shares > 1) queue.launch(tensor::sum_kernel<XElement>, tensor::sum_launch(p), params);
  return true;
}

template <class Element, class XElement, bool kOwnsKeys, bool kGradient, class Queue>
bool run_tensor_product(Queue& queue, const Product& p) {
  if (p.x.columns <= 64) return run_tensor_product<Element, XElement, kOwnsKeys, kGradient, 64>(queue, p);
  return run_tensor_product<Element, XElement, kOwnsKeys, kGradient, 128>(queue, p);
}

template <class Element, bool kOwnsKeys, class Queue>
bool run_tensor_product(Queue& queue, const Product& p) {
  if (!fits_tensor_tiles(p.a.shape) || tensor::softcap_under_mask(p)) return false;
  if (p.gradient) {
    if (p.own_value.columns > tensor::kMaxDim) return false;
    return run_tensor_product<Element, Element, kOwnsKeys, true>(queue, p);
  }
  if (p.x_is_accumulator) return run_tensor_product<Element, float, kOwnsKeys, false>(queue, p);
  return run_tensor_product<Element, Element, kOwnsKeys, false>(queue, p);
}

template <class Element, class Queue>
void run_product(Queue& queue, const Product& p) {
  if (tensor::product_elements(p) == 0) return;
  if constexpr (!std::is_same_v<Element, double>) {
    if (p.owns_keys ? run_tensor_product<Element, true>(queue, p) : run_tensor_product<Element, false>(queue, p))
      return;
  }
  const Launch launch = scalar::product_launch<Element>(p);
  if (p.owns_keys)
    queue.launch(scalar::product_kernel<Element, true>, launch, p);
  else
    queue.launch(scalar::product_kernel<Element, false>, launch, p);
}

template <class Element, int kColumns, class Queue>
bool run_tensor_forward(Queue& queue, const Forward& f) {
  const int shares = tensor::forward_shares<Element, kColumns>(f, queue.multiprocessors());
  const Launch launch = tensor::forward_launch<Element, kColumns>(f, shares);
  if (launch.shared_bytes > queue.shared_limit()) return false;
  tensor::ForwardParams params{f, {shares, nullptr}};
  if (shares > 1) params.shares.workspace = queue.workspace(tensor::forward_workspace(f, shares));
  queue.launch(tensor::forward_kernel<Element, kColumns>, launch, params);
  if (shares > 1) queue.launch(tensor::merge_kernel<Element>, tensor::merge_launch(f), params);
  return true;
}

template <class Element, class Queue>
bool run_tensor_forward(Queue& queue, const Forward& f) {
  if constexpr (!std::is_same_v<Element, double>) {
    if (!fits_tensor_tiles(f.a.shape)) return false;
    const int64_t columns = f.value.columns;
    if (columns == 0) return run_tensor_forward<Element, 0>(queue, f);
    if (columns <= 64) return run_tensor_forward<Element, 64>(queue, f);
    if (columns <= 128) return run_tensor_forward<Element, 128>(queue, f);
    if (columns <= 256) return run_tensor_forward<Element, 256>(queue, f);
  }
  return false;
}

template <class Element, class Queue>
void run_forward(Queue& queue, const Forward& f) {
  const Shape& n = f.a.shape;
  if (n.batch * n.heads * n.queries == 0 || run_tensor_forward<Element>(queue, f)) return;
  Forward statistics = f;  // first, then A·value
  statistics.value = {};
  if (!run_tensor_forward<Element>(queue, statistics))
    queue.launch(scalar::stats_kernel<Element>, scalar::stats_launch<Element>(n), statistics);
  Product p = Product::of_probabilities(f.a, false, f.lse);
  p.x = f.value;
  p.out = f.out;
  p.out_heads = n.heads;
  run_product<Element>(queue, p);
}

template <class Element, class Queue>
void run_apply(Queue& queue, const Apply& p) {
  run_product<Element>(queue, product_of(p));
}

template <class Element, class Queue>
void run_backward(Queue& queue, const Backward& p) {
  run_product<Element>(queue, logit_gradient(p, false));
  run_product<Element>(queue, logit_gradient(p, true));
  if (p.grad_value != nullptr) run_product<Element>(queue, value_gradient(p));
}

}  // namespace artent::attention

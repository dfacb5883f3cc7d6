// A·x, Aᵀ·x, dQ, dK and dV are one thing to the CUDA kernels: weights of every (query, key) times rows, summed.
//
//   a query's output  = factor · Σ_j w_ij x_j      A·x: w = p, x = x        dQ: w = ds, x = key, factor = scale
//   a key's output    = factor · Σ_i w_ij x_i      Aᵀ·x: w = p, x = x       dK: w = ds, x = query, factor = scale
//                                                  dV: w = p, x = grad_out
// over the query heads that share the output's head. With p = e^{s − lse} and dP = grad_out · valueᵀ,
//   ds = p·(g_lse − g_H (ln p + H) + 2 g_P (p − P) + dP − delta), and (1 − (s/softcap)²) times that under a soft cap.
#pragma once

#include "attention.h"

namespace artent::attention {

struct Product {
  Logits a;
  bool owns_keys;                  // an output row is a key's
  bool gradient;                   // w = ds
  Columns own, other;              // query and key, the output's side first
  Columns own_value, other_value;  // grad_out and value likewise; none where nothing arrived at A·value
  Columns x;                       // rows of the other side
  bool x_is_accumulator;
  void* out;          // contiguous (B, out_heads, queries or keys, columns), x's type
  int64_t out_heads;  // heads / out_heads query heads are summed
  double factor;
  // Row vectors, null where absent; all but lse are a gradient's.
  const void *lse, *entropy, *purity, *grad_lse, *grad_entropy, *grad_purity, *delta;

  // Weights p, of which query rows or key rows come out.
  static Product of_probabilities(const Logits& a, bool owns_keys, const void* lse) {
    Product q{};
    q.a = a;
    q.owns_keys = owns_keys;
    const Columns query{a.query, a.query_strides, a.shape.dim, 1};
    const Columns key{a.key, a.key_strides, a.shape.dim, a.shape.heads / a.shape.key_heads};
    q.own = owns_keys ? key : query;
    q.other = owns_keys ? query : key;
    q.factor = 1;
    q.lse = lse;
    return q;
  }
};

inline Product product_of(const Apply& p) {
  Product q = Product::of_probabilities(p.a, p.transpose, p.lse);
  q.x = p.x;
  q.x_is_accumulator = p.x_is_accumulator;
  q.out = p.out;
  q.out_heads = p.a.shape.heads;
  return q;
}

// dK when `of_keys`, dQ otherwise.
inline Product logit_gradient(const Backward& p, bool of_keys) {
  Product q = Product::of_probabilities(p.a, of_keys, p.lse);
  q.gradient = true;
  q.own_value = of_keys ? p.value : p.grad_out;
  q.other_value = of_keys ? p.grad_out : p.value;
  q.x = q.other;
  q.out = of_keys ? p.grad_key : p.grad_query;
  q.out_heads = of_keys ? p.a.shape.key_heads : p.a.shape.heads;
  q.factor = p.a.scale;
  q.entropy = p.entropy;
  q.purity = p.purity;
  q.grad_lse = p.grad_lse;
  q.grad_entropy = p.grad_entropy;
  q.grad_purity = p.grad_purity;
  q.delta = p.delta;
  return q;
}

inline Product value_gradient(const Backward& p) {
  Product q = Product::of_probabilities(p.a, true, p.lse);
  q.x = p.grad_out;
  q.out = p.grad_value;
  q.out_heads = p.a.shape.heads / p.value.group;
  return q;
}

}  // namespace artent::attention

// Every op of artent_ext in one place: its schema, which is its contract. Definitions: docs/math.md.
//
// The front that people call (argument checks, defaults, masks unwrapped to integers) is artent_ext/*.py; the
// implementations register beside their kernels (csrc/<family>/*_cpu.cpp for CPU, *_cuda.cu for CUDA).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(artent, m) {
  // Row statistics of A = softmax(scale·QKᵀ + mask), §4. query (B,H,Tq,D), key (B,Hk,Tk,D), H a multiple of Hk;
  // attn_mask bool or additive (B,H,Tq,Tk), strides 0 where broadcast; key_range int64 (B,H,Tq,2), [start, end) of the
  // keys a query sees; diagonal: key j is visible to query i iff j <= i + diagonal. Each output (B,H,Tq), float32
  // (float64 for float64 input).
  m.def(
      "attention_stats(Tensor query, Tensor key, Tensor? attn_mask, Tensor? key_range, int? diagonal, float scale)"
      " -> (Tensor lse, Tensor entropy, Tensor purity)");
  m.def(
      "attention_stats_backward(Tensor? grad_lse, Tensor? grad_entropy, Tensor? grad_purity, Tensor query, Tensor key,"
      " Tensor lse, Tensor entropy, Tensor purity, Tensor? attn_mask, Tensor? key_range, int? diagonal, float scale)"
      " -> (Tensor grad_query, Tensor grad_key)");
}

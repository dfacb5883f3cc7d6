// Every op of artent_ext in one place: its schema, which is its contract. Definitions: docs/math.md.
//
// The front that people call (argument checks, defaults, masks unwrapped to integers) is artent_ext/*.py; the
// implementations register beside their kernels (csrc/<family>/*_cpu.cpp for CPU, *_cuda.cu for CUDA).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(artent, m) {
  // A = softmax(s), s = cap(scale·QKᵀ) + mask, §4. query (B,H,Tq,D), key (B,Hk,Tk,D), H a multiple of Hk; attn_mask
  // bool or additive (B,H,Tq,Tk), strides 0 where broadcast; key_range int64 (B,H,Tq,2), [start, end) of the keys a
  // query sees; diagonal: key j is visible to query i iff j <= i + diagonal; softcap·tanh(·/softcap) on the logits
  // where it is not 0. Row vectors are (B,H,Tq), float32 (float64 for float64 input). lse_low is what rounding took
  // from lse (CUDA: 0).
  m.def(
      "attention_stats(Tensor query, Tensor key, Tensor? attn_mask, Tensor? key_range, int? diagonal, float scale,"
      " float softcap) -> (Tensor lse, Tensor entropy, Tensor purity, Tensor lse_low)");
  // The same with out = A·value (B,H,Tq,c) in one pass; value (B,H or Hk,Tk,c), of query's dtype.
  m.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? key_range, int? diagonal,"
      " float scale, float softcap) -> (Tensor out, Tensor lse, Tensor entropy, Tensor purity, Tensor lse_low)");
  // Gradients of both. grad_out (B,H,Tq,c), value and delta = Σ_c grad_out·out come together or not at all; grad_value
  // is empty unless asked for.
  m.def(
      "attention_backward(Tensor? grad_out, Tensor? value, Tensor? delta, Tensor? grad_lse, Tensor? grad_entropy,"
      " Tensor? grad_purity, Tensor query, Tensor key, Tensor lse, Tensor entropy, Tensor purity, Tensor? lse_low,"
      " Tensor? attn_mask, Tensor? key_range, int? diagonal, float scale, float softcap, bool needs_value)"
      " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)");
  // A·x (B,H,Tq,c) of x (B,H,Tk,c), or Aᵀ·x (B,H,Tk,c) of x (B,H,Tq,c), from the lse of attention_stats; without
  // lse_low a CPU finds it by another pass where |lse| is large. x and the result in query's dtype or in float32
  // (float64 for float64 input).
  m.def(
      "attention_apply(Tensor query, Tensor key, Tensor x, Tensor lse, Tensor? lse_low, bool transpose,"
      " Tensor? attn_mask, Tensor? key_range, int? diagonal, float scale, float softcap) -> Tensor");

  // Randomized SVD of every matrix of A (B,m,n), §3; the algorithm: csrc/rsvd/rsvd.h. U (B,m,k), S (B,k), Vh (B,k,n)
  // in float32 (float64 for float64 input), k = min(rank, m, n), sketched with min(rank + oversample, m, n) columns;
  // residual (B) float64, ‖A − U S Vh‖_F². seed int64, (1) for all matrices or (B). A matrix that holds NaN or Inf
  // gives NaN.
  m.def(
      "rsvd(Tensor A, int rank, int oversample, int power_iters, Tensor seed)"
      " -> (Tensor U, Tensor S, Tensor Vh, Tensor residual)");
  // The same on CUDA where one thread block can hold a matrix: m, n ≤ 512 and a sketch of at most 64 columns (float64:
  // 32).
  m.def(
      "rsvd_small(Tensor A, int rank, int oversample, int power_iters, Tensor seed)"
      " -> (Tensor U, Tensor S, Tensor Vh, Tensor residual)");
  // Its parts, for operators and for matrices whose products belong to a library.
  // Standard normals (len(seed), rows, cols), a function of (seed, row, column) alone.
  m.def("rsvd_sketch(Tensor seed, int rows, int cols, ScalarType dtype) -> Tensor");
  // Y (B,m,q) = Q R: Q like Y, orthonormal to rounding for rounds = 0, after that many rounds of clamped CholeskyQR
  // otherwise; R (B,q,q) float64.
  m.def("rsvd_orthonormalise(Tensor Y, int rounds, Tensor seed) -> (Tensor Q, Tensor R)");
  // R (B,q,q) float64 = U diag(S) Vᵀ, S descending, by one-sided Jacobi (wide ones on the CPU: LAPACK).
  m.def("rsvd_jacobi(Tensor R) -> (Tensor U, Tensor S, Tensor V)");
  // ‖A − U diag(S) Vh‖_F² (B) float64, without storing the difference; 0 where `needed` (B, bool) is false.
  m.def("rsvd_residual(Tensor A, Tensor U, Tensor S, Tensor Vh, Tensor needed) -> Tensor");
}

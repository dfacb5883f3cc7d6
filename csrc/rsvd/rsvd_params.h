// What the rsvd launchers hand to the kernels: plain structs of pointers, strides and sizes.
//
// The kernels take A tall (rsvd.h): `m` ≥ `n`, `a_strides` those of A or of its transpose.
#pragma once

#include <cstdint>

namespace artent::rsvd {

// Of element (i, j) of matrix b.
struct Strides3 {
  int64_t b, i, j;
};

// One seed for all matrices has stride 0.
struct Seeds {
  const int64_t* data;
  int64_t stride;
};

// The whole algorithm for matrices with m ≤ 512 and q ≤ 64 (float64: q ≤ 32), q ≥ 1.
struct SmallShape {
  int64_t batch;
  int m, n, k, q, power_iters;
};

struct SmallParams {
  SmallShape shape;
  const void* a;
  Strides3 a_strides;
  Seeds seeds;
  void* left;  // (B, m, k), the tall side: U, or Vhᵀ of a wide matrix
  Strides3 left_strides;
  void* s;      // (B, k), contiguous
  void* right;  // (B, n, k)
  Strides3 right_strides;
  double* residual;   // (B)
  void* panels;       // scratch, small_panels(shape) elements of the working type a matrix
  double* triangles;  // scratch, (B, 2, q, q)
};

// out (count, rows, cols), contiguous.
struct SketchParams {
  Seeds seeds;
  int64_t count, rows, cols;
  void* out;
};

// Rounds of clamped CholeskyQR over y (B, m, q), contiguous, in place.
struct QrParams {
  int64_t batch, m;
  int q, chunks;  // chunks of rows, each with a partial sum of its own
  int round;
  bool until_orthonormal;  // a matrix is left alone from the round after the one that was enough
  Seeds seeds;
  void* y;
  double* r;          // (B, q, q)
  double* partial;    // scratch, (B, chunks, packed(q))
  void* triangle;     // scratch, (B, triangle_size(q)) of the working type: this round's R
  double* gram;       // scratch where shared memory is too small, (B, packed(q) + q), else null
  double* spare;      // scratch, (B, q, q)
  int32_t* finished;  // scratch, (B): the round that was enough
};

// r (B, q, q), contiguous.
struct JacobiParams {
  int64_t batch;
  int q;
  const double* r;
  double *u, *s, *v;  // (B, q, q), (B, q), (B, q, q)
  double* scratch;    // where shared memory is too small, (B, 2, q, pitch), else null
};

// u (B, m, k), s (B, k), v (B, n, k); A as it comes (m may be below n).
struct ResidualParams {
  int64_t batch, m, n;
  int k;
  const void* a;
  Strides3 a_strides;
  const void* u;
  Strides3 u_strides;
  const void* s;
  const void* v;
  Strides3 v_strides;
  const bool* needed;  // (B)
  double* partial;     // scratch, (B, tiles)
  double* out;         // (B)
};

struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

}  // namespace artent::rsvd

// Row-major matrix product on one thread's tile: the BLAS that torch ships, looked up at run time, or a plain loop.
#pragma once

#include <cstdint>

namespace artent {

// C (m×n, row stride ldc) = alpha · op(A) · op(B) + beta · C; op(A) is m×k, op(B) is k×n.
// beta == 0 overwrites C, NaN included.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc);

// "library" where torch exports sgemm_ and dgemm_, "fallback" otherwise (or under ARTENT_GEMM=fallback, for tests).
const char* gemm_backend();

}  // namespace artent

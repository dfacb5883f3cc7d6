#include "gemm.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace artent {
namespace {

template <typename R>
using Blas = void (*)(const char*, const char*, const int*, const int*, const int*, const R*, const R*, const int*,
                      const R*, const int*, const R*, R*, const int*);

struct Library {
  Blas<float> sgemm = nullptr;
  Blas<double> dgemm = nullptr;
};

const Library& library() {
  static const Library found = [] {
    Library l;
    const char* wanted = std::getenv("ARTENT_GEMM");
    if (wanted != nullptr && std::strcmp(wanted, "fallback") == 0) return l;
    // Already loaded by Python's import of torch, but perhaps not in the global scope: ask for it by name.
    void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    void* where = torch != nullptr ? torch : RTLD_DEFAULT;
    l.sgemm = reinterpret_cast<Blas<float>>(dlsym(where, "sgemm_"));
    l.dgemm = reinterpret_cast<Blas<double>>(dlsym(where, "dgemm_"));
    if (l.sgemm == nullptr || l.dgemm == nullptr) l = Library{};
    return l;
  }();
  return found;
}

template <typename R>
void plain(bool ta, bool tb, int64_t m, int64_t n, int64_t k, R alpha, const R* a, int64_t lda, const R* b, int64_t ldb,
           R beta, R* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    R* row = c + i * ldc;
    for (int64_t j = 0; j < n; ++j) row[j] = beta == R(0) ? R(0) : beta * row[j];
    for (int64_t p = 0; p < k; ++p) {
      const R x = alpha * (ta ? a[p * lda + i] : a[i * lda + p]);
      for (int64_t j = 0; j < n; ++j) row[j] += x * (tb ? b[j * ldb + p] : b[p * ldb + j]);
    }
  }
}

template <typename R>
void run(Blas<R> blas, bool ta, bool tb, int64_t m, int64_t n, int64_t k, R alpha, const R* a, int64_t lda, const R* b,
         int64_t ldb, R beta, R* c, int64_t ldc) {
  if (m <= 0 || n <= 0) return;
  if (blas == nullptr) return plain(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  // Fortran sees the transposes of row-major matrices: Cᵀ = op(B)ᵀ · op(A)ᵀ.
  const int mi = int(m), ni = int(n), ki = int(k), la = int(std::max<int64_t>(lda, 1)),
            lb = int(std::max<int64_t>(ldb, 1)), lc = int(ldc);
  blas(tb ? "T" : "N", ta ? "T" : "N", &ni, &mi, &ki, &alpha, b, &lb, a, &la, &beta, c, &lc);
}

}  // namespace

void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda, const float* b,
          int64_t ldb, float beta, float* c, int64_t ldc) {
  run<float>(library().sgemm, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double* a, int64_t lda,
          const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  run<double>(library().dgemm, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

const char* gemm_backend() {
  return library().sgemm != nullptr ? "library" : "fallback";
}

}  // namespace artent

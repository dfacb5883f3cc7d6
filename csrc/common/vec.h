// Vectors of float and double for the CPU kernels, as wide as the registers of the instruction set they run on.
//
// The width is a template parameter (wider vectors than registers are lowered badly: comparisons go lane by lane).
// All functions are always-inline: they take the instruction set of the kernel they stand in.
#pragma once

#include <cstdint>
#include <limits>

#include "isa.h"

namespace artent {

template <typename R, int Bytes>
struct VecOf;
template <int Bytes>
struct VecOf<float, Bytes> {
  typedef float type __attribute__((vector_size(Bytes)));
  typedef int32_t integer __attribute__((vector_size(Bytes)));
};
template <int Bytes>
struct VecOf<double, Bytes> {
  typedef double type __attribute__((vector_size(Bytes)));
  typedef int64_t integer __attribute__((vector_size(Bytes)));
};

// The vector operations of one width; a kernel body opens with `using S = Simd<R, Bytes>`.
template <typename R, int Bytes>
struct Simd {
  using V = typename VecOf<R, Bytes>::type;
  using I = typename VecOf<R, Bytes>::integer;
  static constexpr int64_t lanes = Bytes / int64_t(sizeof(R));

  static ARTENT_INLINE V load(const R* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  // By way of memory, which compilers turn into one broadcast; a sum with zero costs an addition besides.
  static ARTENT_INLINE V splat(R x) {
    R copies[lanes];
    for (int64_t i = 0; i < lanes; ++i) copies[i] = x;
    return load(copies);
  }
  static ARTENT_INLINE void store(R* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }

  // Larger of the two; a NaN in either stays.
  static ARTENT_INLINE V max(V a, V b) { return ((a >= b) | (a != a)) ? a : b; }
  static ARTENT_INLINE R horizontal_max(V v) {
    R m = v[0];
    for (int64_t i = 1; i < lanes; ++i) m = (m >= v[i] || m != m) ? m : v[i];
    return m;
  }
  // In double and in lane order.
  static ARTENT_INLINE double horizontal_sum(V v) {
    double s = 0;
    for (int64_t i = 0; i < lanes; ++i) s += v[i];
    return s;
  }
  static ARTENT_INLINE V exp_nonpositive(V x);
};

// Cody–Waite split of ln 2, the argument below which exp is returned as zero, and the Taylor polynomial 1/k! whose
// error for |r| ≤ ln2/2 is below half a unit in the last place.
template <typename R>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f, smallest = -87.0f, magic = 12582912.0f;
  static constexpr int degree = 7, bias = 127, mantissa = 23;
  static constexpr float taylor[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
};
template <>
struct ExpConstants<double> {
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10, smallest = -708.0,
                          magic = 6755399441055744.0;
  static constexpr int degree = 13, bias = 1023, mantissa = 52;
  static constexpr double taylor[] = {
      1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
};

// e^x for x ≤ 0, about one unit in the last place; exactly 0 below `smallest` (−inf too); NaN stays NaN.
template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::V Simd<R, Bytes>::exp_nonpositive(V x) {
  using C = ExpConstants<R>;
  const V clamped = (x < C::smallest) ? splat(C::smallest) : x;
  const V shifted = clamped * R(1.44269504088896340736) + C::magic;  // round to nearest by the magic number
  const V n = shifted - C::magic;
  const V r = (clamped - n * C::ln2_hi) - n * C::ln2_lo;
  V y = splat(C::taylor[C::degree]);
  for (int k = C::degree - 1; k >= 0; --k) y = y * r + C::taylor[k];
  const I exponent = (__builtin_convertvector(n, I) + C::bias) << C::mantissa;
  V two_n;
  __builtin_memcpy(&two_n, &exponent, sizeof(two_n));
  return (x < C::smallest) ? splat(0) : y * two_n;
}

}  // namespace artent

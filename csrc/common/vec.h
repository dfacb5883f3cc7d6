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

  // Larger of the two; b where one is NaN.
  static ARTENT_INLINE V max(V a, V b) { return (a > b) ? a : b; }
  // In double and in lane order.
  static ARTENT_INLINE double horizontal_sum(V v) {
    double s = 0;
    for (int64_t i = 0; i < lanes; ++i) s += v[i];
    return s;
  }

  // Both to about one unit in the last place; NaN stays NaN.
  static ARTENT_INLINE V clamp_exponent(V x);  // max(x, the argument whose exponential is returned as 0)
  static ARTENT_INLINE V exp_clamped(V x);     // e^x for a clamped x ≤ 0 (or a little above)
  static ARTENT_INLINE V exp_nonpositive(V x) { return exp_clamped(clamp_exponent(x)); }
  static ARTENT_INLINE V tanh(V x);

 private:
  // x = n ln 2 + r with |r| ≤ ln 2 / 2, by Cody and Waite: n, 2ⁿ, and (e^r − 1) / r.
  struct Reduced {
    V two_n, r, quotient;
  };
  static ARTENT_INLINE Reduced reduce(V clamped);
};

// Cody–Waite split of ln 2, the argument −bias·ln 2 at which 2ⁿ gets the exponent of zero, and the Taylor polynomial
// 1/k! whose error for |r| ≤ ln2/2 is below half a unit in the last place.
template <typename R>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f, lowest = -88.03f, magic = 12582912.0f;
  static constexpr int degree = 7, bias = 127, mantissa = 23;
  static constexpr float taylor[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
};
template <>
struct ExpConstants<double> {
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10, lowest = -709.09,
                          magic = 6755399441055744.0;
  static constexpr int degree = 13, bias = 1023, mantissa = 52;
  static constexpr double taylor[] = {
      1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
};

template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::V Simd<R, Bytes>::clamp_exponent(V x) {
  const V lowest = splat(ExpConstants<R>::lowest);
  return max(lowest, x);  // x where it is NaN
}

template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::Reduced Simd<R, Bytes>::reduce(V clamped) {
  using C = ExpConstants<R>;
  const V shifted = clamped * R(1.44269504088896340736) + C::magic;  // round to nearest by the magic number
  const V n = shifted - C::magic;
  const V r = (clamped - n * C::ln2_hi) - n * C::ln2_lo;
  V y = splat(C::taylor[C::degree]);
  for (int k = C::degree - 1; k >= 1; --k) y = y * r + C::taylor[k];
  const I exponent = (__builtin_convertvector(n, I) + C::bias) << C::mantissa;
  V two_n;
  __builtin_memcpy(&two_n, &exponent, sizeof(two_n));
  return {two_n, r, y};
}

template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::V Simd<R, Bytes>::exp_clamped(V x) {
  const Reduced e = reduce(x);
  return (e.quotient * e.r + R(1)) * e.two_n;
}

// −E/(E + 2) with E = e^{−2|x|} − 1, which is formed without cancellation.
template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::V Simd<R, Bytes>::tanh(V x) {
  const V twice = (x > 0) ? R(-2) * x : R(2) * x;
  const Reduced e = reduce(clamp_exponent(twice));
  const V E = e.quotient * e.r * e.two_n + (e.two_n - R(1));
  const V positive = -E / (E + R(2));
  return (x > 0) ? positive : -positive;
}

}  // namespace artent

// Fixed-width vectors of float and double for the CPU kernels: 64 bytes whatever the instruction set.
//
// The compiler lowers them to one zmm, two ymm or four xmm registers. The lanes, and so the order of every sum, are the
// same on every machine. All functions are always-inline: they take the instruction set of the kernel they stand in.
#pragma once

#include <cstdint>
#include <limits>

#include "isa.h"

namespace artent {

template <typename R>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef int32_t integer __attribute__((vector_size(64)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef int64_t integer __attribute__((vector_size(64)));
};
template <typename R>
using Vec = typename VecOf<R>::type;
template <typename R>
using IVec = typename VecOf<R>::integer;
template <typename R>
constexpr int64_t kLanes = 64 / sizeof(R);

template <typename R>
ARTENT_INLINE Vec<R> splat(R x) {
  Vec<R> v = {};
  return v + x;
}

template <typename R>
ARTENT_INLINE Vec<R> load(const R* p) {
  Vec<R> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename R>
ARTENT_INLINE void store(R* p, const Vec<R>& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Larger of the two; a NaN in `a` stays.
template <typename R>
ARTENT_INLINE Vec<R> max_keep_nan(const Vec<R>& a, const Vec<R>& b) {
  return (a <= b) ? b : a;
}

template <typename R>
ARTENT_INLINE R horizontal_max(const Vec<R>& v) {
  R m = v[0];
  for (int64_t i = 1; i < kLanes<R>; ++i) m = (v[i] <= m) ? m : v[i];
  return m;
}

// Sum over lanes, in double and in lane order.
template <typename R>
ARTENT_INLINE double horizontal_sum(const Vec<R>& v) {
  double s = 0;
  for (int64_t i = 0; i < kLanes<R>; ++i) s += v[i];
  return s;
}

// Cody–Waite split of ln 2, the largest argument below which exp is returned as zero, Taylor degree for |r| ≤ ln2/2.
template <typename R>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f, smallest = -87.0f, magic = 12582912.0f;
  static constexpr int degree = 7, bias = 127, mantissa = 23;
};
template <>
struct ExpConstants<double> {
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10,
                          smallest = -708.0, magic = 6755399441055744.0;
  static constexpr int degree = 13, bias = 1023, mantissa = 52;
};

// e^x for x ≤ 0, about one unit in the last place; exactly 0 below `smallest` (−inf too); NaN stays NaN.
template <typename R>
ARTENT_INLINE Vec<R> exp_nonpositive(const Vec<R>& x) {
  using C = ExpConstants<R>;
  const Vec<R> clamped = (x < C::smallest) ? splat<R>(C::smallest) : x;
  const Vec<R> shifted = clamped * R(1.44269504088896340736) + C::magic;  // round to nearest by the magic number
  const Vec<R> n = shifted - C::magic;
  const Vec<R> r = (clamped - n * C::ln2_hi) - n * C::ln2_lo;
  R factorial = 1;
  for (int k = 2; k <= C::degree; ++k) factorial *= R(k);
  Vec<R> y = splat<R>(R(1) / factorial);
  for (int k = C::degree; k >= 1; --k) {  // 1/(k−1)! from 1/k!, Horner
    factorial /= R(k);
    y = y * r + R(1) / factorial;
  }
  const IVec<R> exponent = (__builtin_convertvector(n, IVec<R>) + C::bias) << C::mantissa;
  Vec<R> two_n;
  __builtin_memcpy(&two_n, &exponent, sizeof(two_n));
  return (x < C::smallest) ? splat<R>(0) : y * two_n;
}

}  // namespace artent

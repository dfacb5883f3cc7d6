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

  // To about one unit in the last place; NaN stays NaN.
  static ARTENT_INLINE V clamp_exponent(V x);  // max(x, the argument whose power is returned as 0)
  // 2^x for clamped x ≤ 0 (or a little above): e^y is 2^(y·log₂e), whose reduction to |f| ≤ ½ is exact, where that of
  // e^y by multiples of ln 2 costs two multiply-adds. Several at once, step by step: one alone is a chain of dependent
  // multiply-adds that leaves most of a core idle.
  template <int kCount>
  static ARTENT_INLINE void exp2_clamped(const V (&x)[kCount], V (&e)[kCount]);
  template <int kCount>
  static ARTENT_INLINE void exp2_nonpositive(const V (&x)[kCount], V (&e)[kCount]);
  static ARTENT_INLINE V tanh(V x);

 private:
  // x = n + f with |f| ≤ ½, both exact: 2ⁿ, f and (2^f − 1)/f.
  template <int kCount>
  static ARTENT_INLINE void reduce(const V (&clamped)[kCount], V (&two_n)[kCount], V (&f)[kCount],
                                   V (&quotient)[kCount]);
};

constexpr double kLog2e = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// −bias is the argument at which 2ⁿ gets the exponent of zero; c are the coefficients of (2^f − 1)/f. float: least
// squares of the relative error of 2^f at Chebyshev's points, each coefficient rounded before the next is fitted; below
// 4e-9. double: Taylor's, (ln 2)^{k+1}/(k+1)!.
template <typename R>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float magic = 12582912.0f;
  static constexpr int bias = 127, mantissa = 23, count = 6;
  static constexpr float c[count] = {0.693147182f,   0.240226448f,   0.0555035882f,
                                     0.00961883739f, 0.00133913278f, 0.000152398628f};
};
template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0;
  static constexpr int bias = 1023, mantissa = 52, count = 14;
  static constexpr double c[count] = {0.6931471805599453,     0.24022650695910072,    0.05550410866482158,
                                      0.009618129107628477,   0.0013333558146428443,  0.0001540353039338161,
                                      1.5252733804059841e-05, 1.321548679014431e-06,  1.01780860092397e-07,
                                      7.054911620801123e-09,  4.4455382718708116e-10, 2.5678435993488206e-11,
                                      1.3691488853904128e-12, 6.778726354822545e-14};
};

template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::V Simd<R, Bytes>::clamp_exponent(V x) {
  return max(splat(-ExpConstants<R>::bias), x);  // x where it is NaN
}

template <typename R, int Bytes>
template <int kCount>
ARTENT_INLINE void Simd<R, Bytes>::reduce(const V (&x)[kCount], V (&two_n)[kCount], V (&f)[kCount],
                                          V (&quotient)[kCount]) {
  using C = ExpConstants<R>;
  V n[kCount], square[kCount];
  for (int i = 0; i < kCount; ++i) n[i] = x[i] + C::magic;  // rounds to an integer
  for (int i = 0; i < kCount; ++i) n[i] -= C::magic;
  for (int i = 0; i < kCount; ++i) f[i] = x[i] - n[i];
  for (int i = 0; i < kCount; ++i) square[i] = f[i] * f[i];
  // Pairs of terms, then Horner in f².
  for (int i = 0; i < kCount; ++i) quotient[i] = C::c[C::count - 1] * f[i] + C::c[C::count - 2];
  for (int k = C::count - 4; k >= 0; k -= 2) {
    V pair[kCount];
    for (int i = 0; i < kCount; ++i) pair[i] = C::c[k + 1] * f[i] + C::c[k];
    for (int i = 0; i < kCount; ++i) quotient[i] = quotient[i] * square[i] + pair[i];
  }
  for (int i = 0; i < kCount; ++i) {
    const I exponent = (__builtin_convertvector(n[i], I) + C::bias) << C::mantissa;
    __builtin_memcpy(&two_n[i], &exponent, sizeof(exponent));
  }
}

template <typename R, int Bytes>
template <int kCount>
ARTENT_INLINE void Simd<R, Bytes>::exp2_clamped(const V (&x)[kCount], V (&e)[kCount]) {
  V two_n[kCount], f[kCount], quotient[kCount];
  reduce(x, two_n, f, quotient);
  for (int i = 0; i < kCount; ++i) e[i] = quotient[i] * f[i] + R(1);
  for (int i = 0; i < kCount; ++i) e[i] *= two_n[i];
}

template <typename R, int Bytes>
template <int kCount>
ARTENT_INLINE void Simd<R, Bytes>::exp2_nonpositive(const V (&x)[kCount], V (&e)[kCount]) {
  V clamped[kCount];
  for (int i = 0; i < kCount; ++i) clamped[i] = clamp_exponent(x[i]);
  exp2_clamped(clamped, e);
}

// −E/(E + 2) with E = e^{−2|x|} − 1, which is formed without cancellation.
template <typename R, int Bytes>
ARTENT_INLINE typename Simd<R, Bytes>::V Simd<R, Bytes>::tanh(V x) {
  const V twice = (x > 0) ? R(-2) * x : R(2) * x;
  const V argument[1] = {clamp_exponent(twice * R(kLog2e))};
  V two_n[1], f[1], quotient[1];
  reduce(argument, two_n, f, quotient);
  const V E = quotient[0] * f[0] * two_n[0] + (two_n[0] - R(1));
  const V positive = -E / (E + R(2));
  return (x > 0) ? positive : -positive;
}

}  // namespace artent

// 16-bit floating types as bits, with conversions, for kernels that include no torch header.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace artent {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

ARTENT_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
ARTENT_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

ARTENT_INLINE float widen(BFloat16 x) {
  return from_bits(uint32_t(x.bits) << 16);
}

// A half's exponent and mantissa placed in a float's are the value times 2^−112; multiplying restores subnormals too.
ARTENT_INLINE float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = uint32_t(x.bits & 0x7fffu) << 13;
  const float scaled = from_bits(rest) * 0x1p112f;
  const uint32_t value = (rest >= (0x1fu << 23)) ? (rest | (0xffu << 23)) : to_bits(scaled);  // infinity, NaN
  return from_bits(value | sign);
}
ARTENT_INLINE float widen(float x) {
  return x;
}
ARTENT_INLINE double widen(double x) {
  return x;
}

// Round to nearest, ties to even.
ARTENT_INLINE void narrow(float x, BFloat16& out) {
  const uint32_t u = to_bits(x);
  out.bits = (x != x) ? uint16_t(0x7fc0u) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
ARTENT_INLINE void narrow(float x, Float16& out) {
  const uint32_t u = to_bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  uint32_t half;
  if (a > 0x7f800000u) {
    half = 0x7e00u;
  } else if (a >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (a < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
    half = to_bits(from_bits(a) + 0.5f) - to_bits(0.5f);
  } else {
    half = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  }
  out.bits = uint16_t(sign | half);
}
ARTENT_INLINE void narrow(float x, float& out) {
  out = x;
}
ARTENT_INLINE void narrow(double x, double& out) {
  out = x;
}

}  // namespace artent

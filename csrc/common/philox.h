// Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), and normal numbers from it.
//
// A number is a function of (seed, stream, row, column) alone: no state, no order, the same on every device and for any
// number of threads. Uniforms are exact everywhere; normals differ between math libraries by rounding.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace artent {

struct Random4 {
  uint32_t x[4];
};

ARTENT_HOST_DEVICE Random4 philox(uint64_t key, Random4 counter) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  uint32_t* x = counter.x;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * x[0], b = uint64_t(0xCD9E8D57u) * x[2];
    const uint32_t x1 = x[1], x3 = x[3];
    x[0] = uint32_t(b >> 32) ^ x1 ^ k0;
    x[1] = uint32_t(b);
    x[2] = uint32_t(a >> 32) ^ x3 ^ k1;
    x[3] = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

struct Normal4 {
  float x[4];
};

// Standard normals of rows 4·block … 4·block + 3 of one column of stream `stream`, by Box and Muller.
ARTENT_HOST_DEVICE Normal4 normal4(uint64_t seed, uint32_t stream, uint64_t block, uint32_t column) {
  const Random4 bits = philox(seed, {{uint32_t(block), uint32_t(block >> 32), column, stream}});
  Normal4 out;
  for (int pair = 0; pair < 2; ++pair) {
    // 23 bits and a half: exact in float, never 0 or 1.
    const float u = (float(bits.x[2 * pair] >> 9) + 0.5f) * 0x1p-23f;
    const float v = (float(bits.x[2 * pair + 1] >> 9) + 0.5f) * 0x1p-23f;
    const float radius = sqrtf(-2.0f * logf(u)), angle = 6.283185307179586f * v;
    out.x[2 * pair] = radius * cosf(angle);
    out.x[2 * pair + 1] = radius * sinf(angle);
  }
  return out;
}

}  // namespace artent

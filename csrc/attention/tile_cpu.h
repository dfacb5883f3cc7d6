// Tile sizes of the CPU kernels.
#pragma once

#include <cstdint>

namespace artent::attention {

// Logits tile 64×512 floats = 128 KiB: with 512 keys of 64…128 numbers beside it, within a 512 KiB second-level cache.
// Fewer rows would leave the library's product short of work a call; more would evict the keys.
constexpr int64_t kQueryTile = 64;
constexpr int64_t kKeyTile = 512;

// The gradient of keys is owned by key blocks: smaller ones, so that a single head still feeds every core.
constexpr int64_t kKeyBlock = 128;

}  // namespace artent::attention

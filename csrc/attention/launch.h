// How a kernel is launched, and how the work of one tile is shared out when there are too few tiles to fill a chip.
#pragma once

#include <cstdint>

namespace artent::attention {

struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

// Several blocks stream a share each for one tile; their partial results meet in a workspace and are added up in the
// order of the shares by a second kernel, so that the bits are the same each run.
struct Shares {
  int count;  // 1: nobody shares, no workspace
  float* workspace;
};

constexpr int kBlocksPerMultiprocessor = 2;  // what its registers hold
constexpr int kLeastShare = 4;               // tiles of the stream; fewer are not worth their part of the merge

// blocks: without sharing. stream: tiles that one block streams.
inline int shares_for(int64_t blocks, int64_t stream, int multiprocessors) {
  const int64_t wanted = int64_t(multiprocessors) * kBlocksPerMultiprocessor;
  if (blocks == 0 || blocks >= wanted) return 1;
  const int64_t shares = wanted / blocks, most = stream / kLeastShare;
  return int(shares < most ? (shares > 1 ? shares : 1) : (most > 1 ? most : 1));
}

}  // namespace artent::attention

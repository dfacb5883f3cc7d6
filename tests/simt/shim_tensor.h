// csrc/common/simt_tensor.h with checks: matrix fragments, ldmatrix, asynchronous copies. The layouts are described
// there. A product is exact, and so is a sum until it becomes a float: towards zero, as tensor cores do it (Ootomo and
// Yokota, "Recovering single precision accuracy from Tensor Cores", 2022).
#pragma once

#include <array>
#include <cmath>
#include <utility>

#include "memory.h"

namespace artent::simt {

inline uint32_t float_bits(float x) {
  return to_bits(x);
}
inline float bits_float(uint32_t x) {
  return from_bits(x);
}
inline uint32_t to_tf32(float x) {
  return (to_bits(x) + 0x1000u) & ~0x1fffu;
}
inline float exp_approx(float x) {
  return std::exp2(x * 1.44269504f);  // the rounding of the argument is what the hardware's error is made of
}

template <class T>
uint32_t pack2(float low, float high) {
  return uint32_t(T(low).bits.bits) | uint32_t(T(high).bits.bits) << 16;
}
inline float half_low(uint32_t word) {
  return widen(Float16{uint16_t(word)});
}
inline float half_high(uint32_t word) {
  return widen(Float16{uint16_t(word >> 16)});
}

// What the lanes of a warp lay before each other at a warp-wide operation. A lane can be one operation ahead of the
// slowest one, no further, so two boards take turns.
class Boards {
 public:
  static constexpr int kWords = 16;
  struct Board {
    std::array<uint32_t, kWords> lanes[kWarp];
    int arrived = 0;
    bool computed = false;
  };

  void reset(int threads) {
    turns_.assign(threads, 0);
    boards_.assign(threads / kWarp * 2, Board{});
  }

  // Lays down this lane's words; returns when every lane of the warp has.
  Board& meet(const std::array<uint32_t, kWords>& words, Site site) {
    const int thread = machine.thread();
    Board& board = boards_[machine.warp() * 2 + turns_[thread]++ % 2];
    if (board.arrived == kWarp) board.arrived = 0;
    if (board.arrived++ == 0) board.computed = false;
    board.lanes[thread % kWarp] = words;
    machine.exchange(0xffffffffu, 0, thread % kWarp, false, site);
    return board;
  }

 private:
  std::vector<unsigned> turns_;
  std::vector<Board> boards_;
};
inline Boards boards;
inline uint64_t matrix_products = 0;  // of warps, since the tests last asked

// The elements of a word: two of a 16-bit type, or one tf32, of which the hardware drops the low bits.
template <class T>
struct Elements {
  static constexpr int kCount = 2;
  static void unpack(uint32_t word, float* out) {
    T x;
    for (int n = 0; n < 2; ++n) {
      x.bits.bits = uint16_t(word >> 16 * n);
      out[n] = static_cast<float>(x);
    }
  }
};
template <>
struct Elements<Tf32> {
  static constexpr int kCount = 1;
  static void unpack(uint32_t word, float* out) { *out = from_bits(word & ~0x1fffu); }
};

inline float towards_zero(double x) {
  const float nearest = float(x);
  return std::fabs(double(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// All lanes' words {a[4], b[4], left[4], right[4]}: replaces left and right by the products' sums.
template <class T>
__attribute__((optimize("O3"))) void multiply_board(Boards::Board& board) {
  constexpr int kPer = Elements<T>::kCount, kDepth = 8 * kPer;
  float a[16][kDepth], b[kDepth][16];
  double c[16][16];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const auto& words = board.lanes[lane];
    for (int w = 0; w < 4; ++w) {
      float x[kPer];
      Elements<T>::unpack(words[w], &a[g + w % 2 * 8][(w / 2 * 4 + t) * kPer]);
      Elements<T>::unpack(words[4 + w], x);
      for (int e = 0; e < kPer; ++e) b[(w % 2 * 4 + t) * kPer + e][w / 2 * 8 + g] = x[e];
      for (int side = 0; side < 2; ++side)
        c[g + w / 2 * 8][side * 8 + 2 * t + w % 2] = from_bits(words[8 + 4 * side + w]);
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < 16; ++n) c[i][n] += double(a[i][k]) * double(b[k][n]);
  for (int lane = 0; lane < kWarp; ++lane)
    for (int w = 0; w < 4; ++w)
      for (int side = 0; side < 2; ++side)
        board.lanes[lane][8 + 4 * side + w] =
            to_bits(towards_zero(c[lane / 4 + w / 2 * 8][side * 8 + 2 * (lane % 4) + w % 2]));
}

template <class T>
void mma_pair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], ARTENT_SIMT_HERE) {
  std::array<uint32_t, Boards::kWords> words;
  for (int w = 0; w < 4; ++w) {
    words[w] = a[w], words[4 + w] = b[w];
    words[8 + w] = to_bits(left[w]), words[12 + w] = to_bits(right[w]);
  }
  Boards::Board& board = boards.meet(words, ARTENT_SIMT_SITE("mma"));
  if (!board.computed) multiply_board<T>(board), ++matrix_products;
  board.computed = true;
  const auto& mine = board.lanes[machine.thread() % kWarp];
  for (int w = 0; w < 4; ++w) left[w] = from_bits(mine[8 + w]), right[w] = from_bits(mine[12 + w]);
}

// Copies under way. Nothing arrives before the thread waits for it.
class Copies {
 public:
  void reset(int threads) { threads_.assign(threads, {}); }

  void start(int at, const void* source, int bytes) {
    if (bytes < 0 || bytes > 16) fail("an asynchronous copy of ", bytes, " bytes");
    if (reinterpret_cast<uintptr_t>(source) % 16 != 0) fail("misaligned source of an asynchronous copy");
    Copy copy{at, {}};
    if (bytes > 0) global_memory.copy(copy.bytes, source, size_t(bytes));
    shared_memory.start_copy(at);
    mine().open.push_back(copy);
  }
  void commit() {
    mine().groups.push_back(std::move(mine().open));
    mine().open.clear();
  }
  void wait(size_t left) {
    std::deque<std::vector<Copy>>& groups = mine().groups;
    for (; groups.size() > left; groups.pop_front())
      for (const Copy& copy : groups.front()) shared_memory.end_copy(copy.at, copy.bytes);
  }

 private:
  struct Copy {
    int at;
    unsigned char bytes[16];
  };
  struct Thread {
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
  };
  std::vector<Thread> threads_;

  Thread& mine() { return threads_[machine.thread()]; }
};
inline Copies copies;

inline void copy_commit() {
  copies.commit();
}
template <int kLeft>
void copy_wait() {
  copies.wait(kLeft);
}

class SharedPanel {
 public:
  SharedPanel(int at, int rows, int pitch) : at_(at), rows_(rows), pitch_(pitch) {}

  SharedPanel from(int first, int rows) const {
    if (first + rows > rows_) fail("a shared panel of ", rows_, " rows has no ", rows, " from ", first);
    return SharedPanel(at_ + first * pitch_ * 16, rows, pitch_);
  }
  uint32_t word(int row, int word) const {
    return shared_memory.read<uint32_t>(chunk_at(row, word / 4) + word % 4 * 4);
  }
  void store_word(int row, int word, uint32_t value) const {
    shared_memory.write(chunk_at(row, word / 4) + word % 4 * 4, value);
  }
  void copy_async(int row, int chunk, const void* source, int bytes) const {
    copies.start(chunk_at(row, chunk), source, bytes);
  }
  void matrices(int row, int chunk, uint32_t (&out)[4], ARTENT_SIMT_HERE) const {
    const Boards::Board& board = addresses(row, chunk, ARTENT_SIMT_SITE("ldmatrix"));
    const int lane = machine.thread() % kWarp;
    for (int m = 0; m < 4; ++m)
      out[m] = shared_memory.read<uint32_t>(int(board.lanes[8 * m + lane / 4][0]) + lane % 4 * 4);
  }
  void matrices_transposed(int row, int chunk, uint32_t (&out)[4], ARTENT_SIMT_HERE) const {
    const Boards::Board& board = addresses(row, chunk, ARTENT_SIMT_SITE("ldmatrix.trans"));
    const int g = machine.thread() % kWarp / 4, t = machine.thread() % kWarp % 4;
    for (int m = 0; m < 4; ++m) {
      out[m] = 0;
      for (int e = 0; e < 2; ++e) {
        const auto word = shared_memory.read<uint32_t>(int(board.lanes[8 * m + 2 * t + e][0]) + g / 2 * 4);
        out[m] |= (word >> g % 2 * 16 & 0xffffu) << 16 * e;
      }
    }
  }

 private:
  int at_, rows_, pitch_;

  int chunk_at(int row, int chunk) const {
    if (row < 0 || row >= rows_ || chunk < 0 || chunk >= pitch_)
      fail("out of bounds of a shared panel of ", rows_, " rows of ", pitch_, " chunks: row ", row, ", chunk ", chunk);
    return at_ + (row * pitch_ + chunk) * 16;
  }
  const Boards::Board& addresses(int row, int chunk, Site site) const {
    return boards.meet({uint32_t(chunk_at(row, chunk))}, site);
  }
};

}  // namespace artent::simt

extern "C" __attribute__((used)) inline uint64_t simt_matrix_products() {
  return std::exchange(artent::simt::matrix_products, 0);
}

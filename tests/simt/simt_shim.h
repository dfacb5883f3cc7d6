// CUDA's words for a C++ compiler, and csrc/common/simt.h's accessors with checks. See README.md.
#pragma once

#include "../../csrc/common/half.h"
#include "memory.h"

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

// Half types as bits that convert; the kernels compute in float.
template <class Bits>
struct HalfStandIn {
  Bits bits;
  HalfStandIn() = default;
  explicit HalfStandIn(float x) { artent::narrow(x, bits); }
  explicit operator float() const { return artent::widen(bits); }
};
using __half = HalfStandIn<artent::Float16>;
using __nv_bfloat16 = HalfStandIn<artent::BFloat16>;

// A call's own place in the source tells barriers apart.
#define ARTENT_SIMT_SITE(what) \
  artent::simt::Site {         \
    what, file, line           \
  }
#define ARTENT_SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(ARTENT_SIMT_HERE) {
  artent::simt::machine.barrier(false, ARTENT_SIMT_SITE("__syncthreads"));
}
inline int __syncthreads_or(int predicate, ARTENT_SIMT_HERE) {
  return artent::simt::machine.barrier(predicate != 0, ARTENT_SIMT_SITE("__syncthreads_or"));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, ARTENT_SIMT_HERE) {
  artent::simt::machine.exchange(mask, 0, artent::simt::machine.thread() % artent::simt::kWarp, true,
                                 ARTENT_SIMT_SITE("__syncwarp"));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, ARTENT_SIMT_HERE) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = artent::simt::machine.exchange(mask, bits, source, false, ARTENT_SIMT_SITE("shuffle"));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, ARTENT_SIMT_HERE) {
  return __shfl_sync(mask, value, artent::simt::machine.thread() % artent::simt::kWarp ^ lanes, file, line);
}
// Past the last lane a thread keeps its own value.
template <class T>
T __shfl_down_sync(unsigned mask, T value, int lanes, ARTENT_SIMT_HERE) {
  const int lane = artent::simt::machine.thread() % artent::simt::kWarp;
  return __shfl_sync(mask, value, lane + lanes < artent::simt::kWarp ? lane + lanes : lane, file, line);
}

namespace artent::simt {

template <class T>
T global_load(const T* p) {
  return global_memory.read(p);
}

template <class T>
void global_store(T* p, T value) {
  global_memory.write(p, value);
}

template <class T, int kRows_, int kPitch_>
class SharedTile {
 public:
  using Value = T;
  static constexpr int kRows = kRows_, kPitch = kPitch_, kBytes = kRows * kPitch * sizeof(T);
  static_assert(sizeof(T) % 4 == 0, "the shadow knows words of four bytes");

  explicit SharedTile(int at) : at_(at) {}
  T load(int row, int col) const { return shared_memory.read<T>(byte(row, col, 1)); }
  void store(int row, int col, T value) const { shared_memory.write(byte(row, col, 1), value); }
  Vec4<T> vec4(int row, int col) const {
    const int at = byte(row, col, 4);
    if (at % 16 != 0) fail("misaligned vector: row ", row, ", column ", col, " of a shared tile of pitch ", kPitch);
    return shared_memory.read<Vec4<T>>(at);
  }
  template <int kFirst, int kCount>
  SharedTile<T, kCount, kPitch> slice() const {
    static_assert(kFirst + kCount <= kRows);
    return SharedTile<T, kCount, kPitch>(at_ + kFirst * kPitch * int(sizeof(T)));
  }

 private:
  int at_;

  int byte(int row, int col, int count) const {
    if (row < 0 || row >= kRows || col < 0 || col + count > kPitch)
      fail("out of bounds of a shared tile of ", kRows, "×", kPitch, ": row ", row, ", column ", col);
    return at_ + (row * kPitch + col) * int(sizeof(T));
  }
};

template <class T>
class SharedSpan {
 public:
  using Value = T;
  static_assert(sizeof(T) % 4 == 0, "the shadow knows words of four bytes");

  SharedSpan(int at, int64_t count) : at_(at), count_(count) {}
  T load(int i) const { return shared_memory.read<T>(byte(i, 1)); }
  void store(int i, T value) const { shared_memory.write(byte(i, 1), value); }
  Vec4<T> vec4(int i) const { return shared_memory.read<Vec4<T>>(vector(i)); }
  void store_vec4(int i, const Vec4<T>& value) const { shared_memory.write(vector(i), value); }
  SharedSpan from(int first) const {
    if (first > count_) fail("a shared span of ", count_, " elements has none from ", first);
    return SharedSpan(at_ + first * int(sizeof(T)), count_ - first);
  }

 private:
  int at_;
  int64_t count_;

  int byte(int i, int count) const {
    if (i < 0 || i + count > count_) fail("out of bounds of a shared span of ", count_, ": element ", i);
    return at_ + i * int(sizeof(T));
  }
  int vector(int i) const {
    const int at = byte(i, 4);
    if (at % 16 != 0) fail("misaligned vector: element ", i, " of a shared span");
    return at;
  }
};

// The buffer it lies in has bounds of its own; this one's are a matrix's.
template <class T>
class GlobalSpan {
 public:
  using Value = T;

  GlobalSpan(T* data, int64_t count) : data_(data), count_(count) {}
  T load(int i) const { return global_memory.read(element(i, 1)); }
  void store(int i, T value) const { global_memory.write(element(i, 1), value); }
  Vec4<T> vec4(int i) const { return global_memory.read(reinterpret_cast<const Vec4<T>*>(element(i, 4))); }
  void store_vec4(int i, const Vec4<T>& value) const {
    global_memory.write(reinterpret_cast<Vec4<T>*>(element(i, 4)), value);
  }
  GlobalSpan from(int first) const { return GlobalSpan(data_ + first, count_ - first); }

 private:
  T* data_;
  int64_t count_;

  T* element(int i, int count) const {
    if (i < 0 || i + count > count_) fail("out of bounds of a global span of ", count_, ": element ", i);
    return data_ + i;
  }
};

}  // namespace artent::simt

#include "shim_tensor.h"

namespace artent::simt {

class SharedArena {
 public:
  template <class Tile>
  Tile take() {
    Tile tile(next_);
    next_ += Tile::kBytes;
    if (next_ > shared_memory.size())
      fail("the kernel takes ", next_, " bytes of shared memory, the launch gives ", shared_memory.size());
    return tile;
  }
  template <class T>
  SharedSpan<T> span(int count) {
    const int at = next_;
    next_ += span_bytes<T>(count);
    if (next_ > shared_memory.size())
      fail("the kernel takes ", next_, " bytes of shared memory, the launch gives ", shared_memory.size());
    return SharedSpan<T>(at, count);
  }
  SharedPanel panel(int rows, int pitch) {
    const int at = next_;
    next_ += rows * pitch * 16;
    if (next_ > shared_memory.size())
      fail("the kernel takes ", next_, " bytes of shared memory, the launch gives ", shared_memory.size());
    return SharedPanel(at, rows, pitch);
  }

 private:
  int next_ = 0;
};

// kernel<<<blocks, threads, shared_bytes>>>, in the order that the seed gives.
inline void launch(int64_t blocks, int threads, int shared_bytes, uint64_t seed, const std::function<void()>& kernel) {
  gridDim.x = unsigned(blocks);
  blockDim.x = unsigned(threads);
  global_memory.start_launch();
  machine.launch(
      blocks, threads, seed, kernel,
      [&] {
        shared_memory.reset(shared_bytes);
        boards.reset(threads);
        copies.reset(threads);
      },
      [](int64_t block, int thread) {
        blockIdx.x = unsigned(block);
        threadIdx.x = unsigned(thread);
      });
}

// What a C function hands to the tests: null, or why the launch failed. Valid until the next call.
inline const char* report(const std::function<void()>& body) {
  static std::string message;
  try {
    body();
    return nullptr;
  } catch (const Fault& fault) {
    message = fault.what();
    return message.c_str();
  }
}

}  // namespace artent::simt

// Buffers of the next launch, named for messages.
extern "C" __attribute__((used)) inline void simt_clear() {
  artent::simt::global_memory.clear();
}
extern "C" __attribute__((used)) inline void simt_buffer(const char* name, const void* data, size_t bytes, int use) {
  artent::simt::global_memory.add(name, data, bytes, artent::simt::Use(use));
}

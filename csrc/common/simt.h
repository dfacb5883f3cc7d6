// What device code says instead of raw pointers: loads and stores of global memory, tiles of shared memory.
//
// With nvcc these are the plain accesses. The tests compile the same kernels with a C++ compiler and find
// simt_shim.h on the include path, where every access is checked (tests/simt/README.md).
#pragma once

#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace artent::simt {

template <class T>
struct alignas(16) Vec4 {
  T x[4];
};

struct Tf32 {};  // float's exponent, ten bits of mantissa; tensor cores do not look at the other thirteen

// What a span takes of the arena: the next one starts on a vector's boundary.
template <class T>
ARTENT_HOST_DEVICE constexpr int span_bytes(int count) {
  return (count * int(sizeof(T)) + 15) / 16 * 16;
}

}  // namespace artent::simt

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt_tensor.h"

namespace artent::simt {

template <class T>
__device__ __forceinline__ T global_load(const T* p) {
  return *p;
}

template <class T>
__device__ __forceinline__ void global_store(T* p, T value) {
  *p = value;
}

// kRows rows of kPitch elements in shared memory. vec4 needs a column, and a pitch, divisible by four.
template <class T, int kRows_, int kPitch_>
class SharedTile {
 public:
  using Value = T;
  static constexpr int kRows = kRows_, kPitch = kPitch_, kBytes = kRows * kPitch * sizeof(T);

  __device__ __forceinline__ explicit SharedTile(unsigned char* bytes) : data_(reinterpret_cast<T*>(bytes)) {}
  __device__ __forceinline__ T load(int row, int col) const { return data_[row * kPitch + col]; }
  __device__ __forceinline__ void store(int row, int col, T value) const { data_[row * kPitch + col] = value; }
  __device__ __forceinline__ Vec4<T> vec4(int row, int col) const {
    return *reinterpret_cast<const Vec4<T>*>(data_ + row * kPitch + col);
  }
  // Rows kFirst … kFirst + kCount − 1 as a tile of their own, over the same memory.
  template <int kFirst, int kCount>
  __device__ __forceinline__ SharedTile<T, kCount, kPitch> slice() const {
    static_assert(kFirst + kCount <= kRows);
    return SharedTile<T, kCount, kPitch>(reinterpret_cast<unsigned char*>(data_ + kFirst * kPitch));
  }

 private:
  T* data_;
};

// Elements in a row whose number the launch decides: shared memory, or global memory that a kernel writes and reads
// back (its own block's writes, after a barrier). vec4 needs an address divisible by 16 bytes.
template <class T>
class Span {
 public:
  using Value = T;

  __device__ __forceinline__ Span(T* data, int64_t) : data_(data) {}
  __device__ __forceinline__ T load(int i) const { return data_[i]; }
  __device__ __forceinline__ void store(int i, T value) const { data_[i] = value; }
  __device__ __forceinline__ Vec4<T> vec4(int i) const { return *reinterpret_cast<const Vec4<T>*>(data_ + i); }
  __device__ __forceinline__ void store_vec4(int i, const Vec4<T>& value) const {
    *reinterpret_cast<Vec4<T>*>(data_ + i) = value;
  }
  __device__ __forceinline__ Span from(int first) const { return Span(data_ + first, 0); }

 private:
  T* data_;
};
template <class T>
using SharedSpan = Span<T>;
template <class T>
using GlobalSpan = Span<T>;

// Hands out the launch's dynamic shared memory, tile after tile. A copy hands out the same memory again: what a later
// phase of a kernel lays over an earlier one.
class SharedArena {
 public:
  __device__ __forceinline__ SharedArena() {
    extern __shared__ __align__(16) unsigned char artent_shared[];
    next_ = artent_shared;
  }
  template <class Tile>
  __device__ __forceinline__ Tile take() {
    static_assert(Tile::kBytes % 16 == 0, "the next tile has to start on a vector's boundary");
    Tile tile(next_);
    next_ += Tile::kBytes;
    return tile;
  }
  template <class T>
  __device__ __forceinline__ SharedSpan<T> span(int count) {
    T* data = reinterpret_cast<T*>(next_);
    next_ += span_bytes<T>(count);
    return SharedSpan<T>(data, count);
  }
  __device__ __forceinline__ SharedPanel panel(int rows, int pitch) {
    SharedPanel panel(next_, rows, pitch);
    next_ += rows * pitch * 16;
    return panel;
  }

 private:
  unsigned char* next_;
};

}  // namespace artent::simt
#else
#include "simt_shim.h"
#endif

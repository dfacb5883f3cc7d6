// What the rsvd kernels share: matrices behind strides, sums over a block. Device code, no torch.
#pragma once

#include "../common/accumulator.h"
#include "../common/philox.h"
#include "../common/simt.h"
#include "rsvd.h"
#include "rsvd_params.h"

namespace artent::rsvd {

// Shared memory that one block may have on sm_80; a launch never asks for more.
constexpr int kSharedLimit = 163 * 1024;

constexpr int kWarpLanes = 32;
constexpr int kMaxWarps = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

ARTENT_HOST_DEVICE constexpr int round_up(int x, int to) {
  return (x + to - 1) / to * to;
}

// A symmetric or triangular q×q matrix by rows of its lower half.
ARTENT_HOST_DEVICE constexpr int packed(int q) {
  return q * (q + 1) / 2;
}
ARTENT_HOST_DEVICE constexpr int packed(int i, int j) {
  return i * (i + 1) / 2 + j;
}

// A matrix in global memory at any strides.
template <class Element>
struct View {
  const Element* base;
  int64_t row_stride, col_stride;
  int rows, cols;

  __device__ View transposed() const { return {base, col_stride, row_stride, cols, rows}; }
  __device__ const Element* at(int64_t row, int64_t col) const { return base + row * row_stride + col * col_stride; }
};

__device__ __forceinline__ int lane_id() {
  return int(threadIdx.x) % kWarpLanes;
}
__device__ __forceinline__ int warp_id() {
  return int(threadIdx.x) / kWarpLanes;
}
__device__ __forceinline__ int warp_count() {
  return int(blockDim.x) / kWarpLanes;
}

// The sum over the block, the same bits in every thread. `sums` has a place a warp and is free again on return.
__device__ inline double block_sum(double value, simt::SharedSpan<double> sums) {
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  if (lane_id() == 0) sums.store(warp_id(), value);
  __syncthreads();
  double total = 0;
  for (int w = 0; w < warp_count(); ++w) total += sums.load(w);
  __syncthreads();
  return total;
}

__device__ inline double block_max(double value, simt::SharedSpan<double> sums) {
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, value, lanes);
    value = other > value ? other : value;
  }
  if (lane_id() == 0) sums.store(warp_id(), value);
  __syncthreads();
  double largest = 0;
  for (int w = 0; w < warp_count(); ++w) largest = sums.load(w) > largest ? sums.load(w) : largest;
  __syncthreads();
  return largest;
}

// x · 2^exponent in two steps, neither of which leaves the range: 2^exponent itself may.
template <class Real>
struct PowerOfTwo {
  Real first, second;

  __device__ explicit PowerOfTwo(int exponent)
      : first(Real(ldexp(1.0, exponent / 2))), second(Real(ldexp(1.0, exponent - exponent / 2))) {}
  __device__ Real operator()(Real x) const { return x * first * second; }
};

}  // namespace artent::rsvd

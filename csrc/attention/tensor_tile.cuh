// Tiles on tensor cores: rows in shared memory by slices, products of rows, products of weights with rows. Device code.
//
// A block owns a tile of rows of one input, all its components in shared memory, and streams the other input past it in
// slices of 128 bytes a row: three of them in shared memory, one being multiplied while the next two arrive. A warp
// holds its own 16 or 32 rows of every product in registers. So neither shared memory for the stream nor the registers
// of the logits grow with the head dimension, which is a number of slices known at run time.
//
// 16-bit inputs are multiplied as they are. float ones are split into two tf32, x = big + small, and multiplied three
// times (big·big + big·small + small·big): one tf32 product would leave eleven bits of a logit.
#pragma once

#include "../common/simt.h"
#include "attention.h"

namespace artent::attention::tensor {

constexpr int kWarps = 4;  // a warp for each of a multiprocessor's tensor cores
constexpr int kThreads = 32 * kWarps;
constexpr int kStepChunks = 2;                           // an mma sums over two 16-byte chunks of a row
constexpr int kSliceChunks = 8;                          // 128 bytes: a cache line, four steps of an mma
constexpr int kSlicePitch = kSliceChunks + 1;            // odd: ldmatrix reads eight rows without a bank conflict
constexpr int kAhead = 2;                                // slices under way: a multiplication is shorter than a load
constexpr int kRing = kAhead + 1;                        // slices in shared memory
constexpr int kMaxDim = 256;                             // beyond it own rows outgrow shared memory
constexpr int kSliceSteps = kSliceChunks / kStepChunks;  // of an mma

template <class T>
constexpr int kPerChunk = 16 / int(sizeof(T));
template <class T>
constexpr int kPerSlice = kSliceChunks * kPerChunk<T>;

template <class Integer>
__host__ __device__ constexpr Integer divide_up(Integer n, int by) {
  return (n + by - 1) / by;
}
template <class T>
__host__ __device__ constexpr int depth_steps(int64_t dim) {
  return int(divide_up(dim, kStepChunks * kPerChunk<T>));
}
// Chunks between two rows of a tile that holds all components: odd as well.
template <class T>
__host__ __device__ constexpr int own_pitch(int64_t dim) {
  return kStepChunks * depth_steps<T>(dim) + 1;
}

__device__ __forceinline__ int lane() {
  return int(threadIdx.x) % 32;
}
__device__ __forceinline__ int warp() {
  return int(threadIdx.x) / 32;
}

// One head of an input, of what query head h reads. Rows and columns past the ends read as zero.
template <class T>
struct Rows {
  const T* base;
  int64_t row_stride, column_stride;
  int rows, columns;
  bool aligned;  // rows are contiguous and start on 16-byte boundaries: they can be copied asynchronously

  __device__ __forceinline__ Rows(const Columns& x, int64_t b, int h, int64_t rows)
      : base(static_cast<const T*>(x.data) + b * x.strides.b + h / int(x.group) * x.strides.h),
        row_stride(x.strides.i),
        column_stride(x.strides.j),
        rows(int(rows)),
        columns(int(x.columns)) {
    aligned = column_stride == 1 && reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_stride % kPerChunk<T> == 0;
  }
};

// Chunks at_chunk … at_chunk + chunks − 1 (of at most a slice) of kRows rows of the panel, from row0, column0 of x.
// They are there after copy_commit, copy_wait and a barrier.
template <int kRows, class T>
__device__ __forceinline__ void load_slice(const simt::SharedPanel& panel, int at_chunk, int chunks, const Rows<T>& x,
                                           int row0, int column0) {
  if (x.aligned) {
    static_assert(kRows * kSliceChunks % kThreads == 0);
#pragma unroll
    for (int k = 0; k < kRows * kSliceChunks / kThreads; ++k) {
      const int n = int(threadIdx.x) + k * kThreads, row = n / kSliceChunks, chunk = n % kSliceChunks;
      if (chunk >= chunks) continue;
      const int column = column0 + chunk * kPerChunk<T>, left = (x.columns - column) * int(sizeof(T));
      const int bytes = row0 + row >= x.rows || left <= 0 ? 0 : left < 16 ? left : 16;
      panel.copy_async(row, at_chunk + chunk, x.base + (bytes ? (row0 + row) * x.row_stride + column : 0), bytes);
    }
    return;
  }
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  constexpr int kPerWord = 4 / int(sizeof(T));
#pragma unroll 4
  for (int n = threadIdx.x; n < kRows * kSliceChunks * 4; n += kThreads) {
    const int row = n / (kSliceChunks * 4), word = n % (kSliceChunks * 4);
    if (word >= 4 * chunks) continue;
    uint32_t value = 0;
#pragma unroll
    for (int e = 0; e < kPerWord; ++e) {
      const int column = column0 + word * kPerWord + e;
      if (row0 + row >= x.rows || column >= x.columns) continue;
      const T* at = x.base + (row0 + row) * x.row_stride + column * x.column_stride;
      value |= uint32_t(simt::global_load(reinterpret_cast<const Bits*>(at))) << 16 * e;
    }
    panel.store_word(row, 4 * at_chunk + word, value);
  }
}

// All components of kRows rows.
template <int kRows, class T>
__device__ __forceinline__ void load_rows(const simt::SharedPanel& panel, const Rows<T>& x, int row0) {
  const int chunks = kStepChunks * depth_steps<T>(x.columns);
  for (int at = 0; at < chunks; at += kSliceChunks)
    load_slice<kRows>(panel, at, chunks - at < kSliceChunks ? chunks - at : kSliceChunks, x, row0, at * kPerChunk<T>);
}

// x = big + small, each a tf32, to 2⁻²² |x|.
struct Split {
  uint32_t big[4], small[4];

  __device__ __forceinline__ explicit Split(const uint32_t (&x)[4]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      big[n] = simt::to_tf32(simt::bits_float(x[n]));
      small[n] = simt::to_tf32(simt::bits_float(x[n]) - simt::bits_float(big[n]));
    }
  }
};

// Tensor cores round sums towards zero; eight terms at a time they do so near the size of the terms, and the long sum
// is rounded to nearest (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022).
__device__ __forceinline__ void multiply_split(float (&left)[4], float (&right)[4], const Split& a, const Split& b) {
  float terms[2][4] = {};
  simt::mma_pair<simt::Tf32>(terms[0], terms[1], a.small, b.big);
  simt::mma_pair<simt::Tf32>(terms[0], terms[1], a.big, b.small);
  simt::mma_pair<simt::Tf32>(terms[0], terms[1], a.big, b.big);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    left[e] += terms[0][e];
    right[e] += terms[1][e];
  }
}

// A warp's rows times kOther other rows: kRowTiles tiles of 16, kOther / 8 of 8, in the layout of an mma's c.
template <int kRowTiles, int kOther>
using Products = float[kRowTiles][kOther / 8][4];

// Where this lane's s[r][n][e] lies: its row among the block's own, its column among the others.
template <int kRowTiles>
__device__ __forceinline__ int product_row(int r, int e) {
  return warp() * 16 * kRowTiles + 16 * r + e / 2 * 8 + lane() / 4;
}
__device__ __forceinline__ int product_column(int n, int e) {
  return 8 * n + 2 * (lane() % 4) + e % 2;
}

template <int kRowTiles, int kOther>
__device__ __forceinline__ void clear(float (&s)[kRowTiles][kOther][4]) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kOther; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[r][n][e] = 0;
}

// s += own rows · other rows, over `steps` steps: chunks from own_chunk of the own rows, from 0 of the slice.
template <class Element, int kRowTiles, int kTiles>
__device__ __forceinline__ void multiply_rows(const simt::SharedPanel& own, int own_chunk,
                                              const simt::SharedPanel& slice, int steps,
                                              float (&s)[kRowTiles][kTiles][4]) {
  const int own_row = warp() * 16 * kRowTiles + lane() % 16, own_half = lane() / 16;
  const int other_row = lane() % 8 + lane() / 16 * 8, other_half = lane() / 8 % 2;
#pragma unroll
  for (int step = 0; step < kSliceSteps; ++step) {
    if (step >= steps) break;
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) own.matrices(own_row + 16 * r, own_chunk + kStepChunks * step + own_half, a[r]);
    if constexpr (sizeof(Element) == 2) {
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        slice.matrices(8 * n + other_row, kStepChunks * step + other_half, b);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) simt::mma_pair<Element>(s[r][n], s[r][n + 1], a[r], b);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const Split split_a(a[r]);
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
          uint32_t b[4];
          slice.matrices(8 * n + other_row, kStepChunks * step + other_half, b);
          multiply_split(s[r][n], s[r][n + 1], split_a, Split(b));
        }
      }
    }
  }
}

// How weights, which are at most 1 unless they are a gradient's, are multiplied with rows of XElement.
enum class Weights {
  rounded,    // rounded to the rows' 16-bit type
  wide_range  // a gradient's: of any size, so that a float16 would lose small ones. float16 rows are exact in tf32
};
// float16 has no normal numbers below 2⁻¹⁴, where probabilities of long rows lie; lifted they have.
template <class XElement, Weights kWeights>
constexpr float kLift = std::is_same_v<XElement, __half> && kWeights == Weights::rounded ? 16384.0f : 1.0f;

// out[r][first + c] += w · columns 8c … of the slice, whose rows are w's columns, for 8c below `columns`.
//
// The c layout of w is the a layout of the next product, if its summed index is counted anew: a tf32 mma takes words t
// and t + 4 of eight keys where c holds 2t and 2t + 1.
template <class XElement, Weights kWeights, int kFirst, int kRowTiles, int kTiles, int kColumnTiles>
__device__ __forceinline__ void multiply_weights(const float (&w)[kRowTiles][kTiles][4], const simt::SharedPanel& slice,
                                                 int columns, float (&out)[kRowTiles][kColumnTiles][4]) {
  constexpr int kSliceTiles = kPerSlice<XElement> / 8;
  constexpr int kHere = kColumnTiles - kFirst < kSliceTiles ? kColumnTiles - kFirst : kSliceTiles;
  if constexpr (sizeof(XElement) == 4) {
    const int row = 2 * (lane() % 4), column = lane() / 4;
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const Split a({simt::float_bits(w[r][k][0]), simt::float_bits(w[r][k][2]), simt::float_bits(w[r][k][1]),
                       simt::float_bits(w[r][k][3])});
#pragma unroll
        for (int c = 0; c < kHere; c += 2) {
          if (8 * c >= columns) break;
          const Split b({slice.word(8 * k + row, 8 * c + column), slice.word(8 * k + row + 1, 8 * c + column),
                         slice.word(8 * k + row, 8 * c + 8 + column), slice.word(8 * k + row + 1, 8 * c + 8 + column)});
          multiply_split(out[r][kFirst + c], out[r][kFirst + c + 1], a, b);
        }
      }
    }
  } else {
    constexpr float kScale = kLift<XElement, kWeights>;
#pragma unroll
    for (int k = 0; k < kTiles; k += 2) {
      uint32_t a[kRowTiles][2][4];  // one fragment of a 16-bit mma, two of a tf32 one
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float (&x)[4] = w[r][k + half];
          if constexpr (std::is_same_v<XElement, __half> && kWeights == Weights::wide_range) {
            a[r][half][0] = simt::to_tf32(x[0]), a[r][half][1] = simt::to_tf32(x[2]);
            a[r][half][2] = simt::to_tf32(x[1]), a[r][half][3] = simt::to_tf32(x[3]);
          } else {
            a[r][0][2 * half] = simt::pack2<XElement>(x[0] * kScale, x[1] * kScale);
            a[r][0][2 * half + 1] = simt::pack2<XElement>(x[2] * kScale, x[3] * kScale);
          }
        }
#pragma unroll
      for (int c = 0; c < kHere; c += 2) {
        if (8 * c >= columns) break;
        uint32_t b[4];
        slice.matrices_transposed(8 * k + lane() % 16, c + lane() / 16, b);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          float (&left)[4] = out[r][kFirst + c], (&right)[4] = out[r][kFirst + c + 1];
          if constexpr (std::is_same_v<XElement, __half> && kWeights == Weights::wide_range) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
              simt::mma_pair<simt::Tf32>(
                  left, right, a[r][half],
                  {simt::float_bits(simt::half_low(b[half])), simt::float_bits(simt::half_high(b[half])),
                   simt::float_bits(simt::half_low(b[2 + half])), simt::float_bits(simt::half_high(b[2 + half]))});
          } else {
            simt::mma_pair<XElement>(left, right, a[r][0], b);
          }
        }
      }
    }
  }
}

// f(its first tile of eight columns, columns from there) for slice `index` of rows of `columns` ≤ kColumns columns.
template <class T, int kColumns, int kFirst = 0, class F>
__device__ __forceinline__ void at_slice(int index, int columns, const F& f) {
  if constexpr (8 * kFirst < kColumns) {
    if (index == 0)
      f(std::integral_constant<int, kFirst>{}, columns - 8 * kFirst);
    else
      at_slice<T, kColumns, kFirst + kPerSlice<T> / 8>(index - 1, columns, f);
  }
}

}  // namespace artent::attention::tensor

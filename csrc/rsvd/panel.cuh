// A panel, a tall block of up to 64 columns in shared memory, and products A·X that replace it. Device code, no torch.
//
// A block holds the whole result of a product in registers, so the panel may be overwritten where it stands: 512 rows
// of 64 columns in float32 are 128 KiB, and a second panel would not fit.
#pragma once

#include "block.cuh"

namespace artent::rsvd {

constexpr int kMaxThreads = 512;  // at 128 registers each they fill the register file

// A thread owns 8 rows × 8 columns of the result (4 in float64: registers), so that a step of the sum is four vector
// loads from shared memory for 64 multiply-adds.
constexpr int kThreadRows = 8;
template <class Real>
constexpr int kThreadCols = sizeof(Real) == 8 ? 4 : 8;

// Columns of A staged at a time: 32 bytes, one sector of memory, when A is read along its rows.
template <class Real>
constexpr int kDepth = 32 / int(sizeof(Real));

// Elements of a staged tile that one thread loads at most: there are as many threads as rows.
template <class Real>
constexpr int kLoads = kDepth<Real>;

// Rows are an odd number of 16-byte groups apart: eight threads that read the same columns of consecutive rows, a
// vector each, meet no bank twice.
template <class Real>
ARTENT_HOST_DEVICE constexpr int panel_pitch(int q) {
  return round_up(q, 8) + 16 / int(sizeof(Real));
}
template <class Real>
ARTENT_HOST_DEVICE constexpr int panel_size(int rows, int q) {
  return round_up(rows, kThreadRows) * panel_pitch<Real>(q);
}
// A staged tile of A, k first. The pitch is four times an odd number: see TileLoader.
ARTENT_HOST_DEVICE constexpr int tile_pitch(int rows) {
  return round_up(rows, kThreadRows) + 4;
}
template <class Real>
ARTENT_HOST_DEVICE constexpr int tile_size(int rows) {
  return kDepth<Real> * tile_pitch(rows);
}

// Threads for a tall side of `rows`: one a row, which is a thread tile each for 64 columns (32 in float64).
ARTENT_HOST_DEVICE constexpr int product_threads(int rows) {
  return round_up(rows, kThreadRows);
}
// Where the result is narrower, how many groups of threads share out the steps of a sum. A power of two.
template <class Real>
ARTENT_HOST_DEVICE constexpr int split_of(int tiles, int threads) {
  int split = 1;
  while (2 * split <= kDepth<Real> && 2 * split * tiles <= threads) split *= 2;
  return split;
}

template <class Real>
struct Panel {
  simt::SharedSpan<Real> data;
  int pitch;

  __device__ Real load(int row, int col) const { return data.load(row * pitch + col); }
  __device__ void store(int row, int col, Real value) const { data.store(row * pitch + col, value); }
  __device__ simt::Vec4<Real> vec4(int row, int col) const { return data.vec4(row * pitch + col); }
  __device__ void store_vec4(int row, int col, const simt::Vec4<Real>& value) const {
    data.store_vec4(row * pitch + col, value);
  }
};

// Reads A tile by tile, kDepth columns of all rows, through registers: a tile is fetched while the one before is used.
// Neighbouring threads read along whichever side of A is contiguous. Along rows of A they are eight columns by four
// rows, which a tile pitch of four times an odd number spreads over all banks when the tile is stored k first. Needs a
// thread a row, or more.
template <class Element>
class TileLoader {
 public:
  using Real = Accumulator<Element>;

  __device__ explicit TileLoader(const View<Element>& a)
      : height_(a.rows), depth_(a.cols), rows_(round_up(a.rows, kThreadRows)), col_stride_(a.col_stride) {
    const int threads = int(blockDim.x), self = int(threadIdx.x);
    if (a.row_stride < a.col_stride) {  // a thread keeps its row
      k_step_ = threads / rows_;
      row_ = self % rows_;
      k_ = self < k_step_ * rows_ ? self / rows_ : kDepth<Real>;
      step_ = k_step_ * a.col_stride;
    } else {  // a thread keeps its column
      row_step_ = threads / kDepth<Real>;
      row_ = self / kDepth<Real>;
      k_ = self % kDepth<Real>;
      step_ = row_step_ * a.row_stride;
    }
    first_ = a.at(row_, k_);
  }

  // Columns k0 …; zero past either end.
  __device__ __forceinline__ void fetch(int k0) {
    const Element* at = first_ + k0 * col_stride_;
    int row = row_, k = k_;
#pragma unroll
    for (int i = 0; i < kLoads<Real>; ++i) {
      held_[i] = static_cast<Element>(0.0f);
      if (row < height_ && k < kDepth<Real> && k0 + k < depth_) held_[i] = simt::global_load(at);
      at += step_, row += row_step_, k += k_step_;
    }
  }

  // f(row, k, value) for all that this thread fetched, padding rows included.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    int row = row_, k = k_;
#pragma unroll
    for (int i = 0; i < kLoads<Real>; ++i) {
      if (row < rows_ && k < kDepth<Real>) f(row, k, static_cast<Real>(held_[i]));
      row += row_step_, k += k_step_;
    }
  }

 private:
  int height_, depth_, rows_;  // rows_: padded
  int64_t col_stride_, step_;
  int row_, k_, row_step_ = 0, k_step_ = 0;
  const Element* first_;
  Element held_[kLoads<Real>];
};

// The panel's first a.cols rows, X, become the a.rows rows of scale(A)·X, for `cols` columns rounded up to eight.
// `tiles` holds one staged tile of A or, with `two_tiles`, two: then one barrier a tile is enough. Returns this
// thread's share of ‖scale(A)‖_F² if `norm` asks for it. Begins and ends with a barrier.
template <class Element>
__device__ double multiply_panel(const View<Element>& a, const PowerOfTwo<Accumulator<Element>>& scale,
                                 const Panel<Accumulator<Element>>& panel, int cols,
                                 simt::SharedSpan<Accumulator<Element>> tiles, bool two_tiles, bool norm) {
  using Real = Accumulator<Element>;
  constexpr int kCols = kThreadCols<Real>;
  const int row_groups = round_up(a.rows, kThreadRows) / kThreadRows, col_groups = round_up(cols, 8) / kCols;
  const int pitch = tile_pitch(a.rows);
  const int split = split_of<Real>(row_groups * col_groups, int(blockDim.x));
  // Threads of a warp differ in their columns first. A thread's eight rows, and columns, are two vectors apart by half
  // the panel, so that neighbours' vectors are neighbours.
  const int group = int(threadIdx.x) / (row_groups * col_groups), place = int(threadIdx.x) % (row_groups * col_groups);
  const int row = place / col_groups * 4, col = place % col_groups * 4;
  const int row_half = row_groups * 4, col_half = col_groups * 4;

  Real acc[kThreadRows][kCols] = {};
  double norm2 = 0;
  TileLoader<Element> loader(a);
  loader.fetch(0);
  auto tile = tiles;
  for (int k0 = 0, turn = 0; k0 < a.cols; k0 += kDepth<Real>, turn ^= 1) {
    if (two_tiles) tile = tiles.from(turn * tile_size<Real>(a.rows));
    loader.each([&](int r, int k, Real value) {
      value = scale(value);
      if (norm) norm2 += double(value) * double(value);
      tile.store(k * pitch + r, value);
    });
    __syncthreads();
    if (k0 + kDepth<Real> < a.cols) loader.fetch(k0 + kDepth<Real>);
    if (group < split) {
      const int depth = a.cols - k0 < kDepth<Real> ? a.cols - k0 : kDepth<Real>;
      for (int k = group; k < depth; k += split) {
        const simt::Vec4<Real> a0 = tile.vec4(k * pitch + row), a1 = tile.vec4(k * pitch + row_half + row);
        const simt::Vec4<Real> x0 = panel.vec4(k0 + k, col);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            acc[i][j] += a0.x[i] * x0.x[j];
            acc[i + 4][j] += a1.x[i] * x0.x[j];
          }
        if constexpr (kCols == 8) {
          const simt::Vec4<Real> x1 = panel.vec4(k0 + k, col_half + col);
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              acc[i][j + 4] += a0.x[i] * x1.x[j];
              acc[i + 4][j + 4] += a1.x[i] * x1.x[j];
            }
        }
      }
    }
    if (!two_tiles) __syncthreads();
  }
  __syncthreads();  // X has been read

  for (int turn = 0; turn < split; ++turn) {  // the groups' shares, added in order
    if (group == turn) {
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
        for (int half = 0; half < kCols / 4; ++half) {
          const int r = row + i % 4 + (i < 4 ? 0 : row_half), c = col + half * col_half;
          simt::Vec4<Real> sum;
          if (turn > 0) sum = panel.vec4(r, c);
#pragma unroll
          for (int j = 0; j < 4; ++j) sum.x[j] = turn > 0 ? sum.x[j] + acc[i][half * 4 + j] : acc[i][half * 4 + j];
          panel.store_vec4(r, c, sum);
        }
    }
    __syncthreads();
  }
  return norm2;
}

// Four rows of a column of Ω, or of a fill, at once: rows block·4 … of the panel or matrix behind `store(row, value)`.
template <class F>
__device__ __forceinline__ void four_normals(uint64_t seed, uint32_t stream, int64_t block, int64_t rows, int col,
                                             const F& store) {
  const Normal4 normals = normal4(seed, stream, uint64_t(block), uint32_t(col));
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (4 * block + i < rows) store(4 * block + i, normals.x[i]);
}

// The panel's first `rows` rows become Ω; columns from q on are zero, and stay zero in all that follows.
template <class Real>
__device__ void sketch_panel(const Panel<Real>& panel, int rows, int q, uint64_t seed) {
  const int width = round_up(q, 8), blocks = (rows + 3) / 4;
  for (int n = int(threadIdx.x); n < blocks * width; n += int(blockDim.x)) {
    const int col = n % width;
    if (col < q)
      four_normals(seed, 0, n / width, rows, col,
                   [&](int64_t row, float value) { panel.store(int(row), col, Real(value)); });
    else
      for (int row = n / width * 4; row < rows && row < n / width * 4 + 4; ++row) panel.store(row, col, Real(0));
  }
}

// The first `rows`×`cols` of the panel from, and to, global memory; eight columns by four rows a warp or, down a
// column, eight rows by four columns, so that either way memory is touched in whole sectors and banks once.
template <class Real>
__device__ void write_panel(const Panel<Real>& panel, int rows, int cols, Real* out, int64_t row_stride,
                            int64_t col_stride) {
  const bool down = row_stride < col_stride;
  const int inner = round_up(down ? rows : cols, 8), outer = down ? cols : rows;
  for (int n = int(threadIdx.x); n < inner * round_up(outer, 4); n += int(blockDim.x)) {
    const int patch = n / kWarpLanes, patches = inner / 8, lane = n % kWarpLanes;
    const int x = patch % patches * 8 + lane % 8, y = patch / patches * 4 + lane / 8;
    const int row = down ? x : y, col = down ? y : x;
    if (row < rows && col < cols) simt::global_store(out + row * row_stride + col * col_stride, panel.load(row, col));
  }
}

// Row-major (rows×cols, contiguous) into the panel; columns up to a multiple of eight become zero.
template <class Real>
__device__ void read_panel(const Panel<Real>& panel, int rows, int cols, const Real* in) {
  const int width = round_up(cols, 8);
  for (int n = int(threadIdx.x); n < rows * width; n += int(blockDim.x)) {
    const int row = n / width, col = n % width;
    panel.store(row, col, col < cols ? simt::global_load(in + int64_t(row) * cols + col) : Real(0));
  }
}

}  // namespace artent::rsvd

// What the CPU kernels share: rows side by side in vector lanes, tiles of logits, what of them is visible.
//
// A task owns a block of rows (queries for A·x and for what belongs to a query, keys for Aᵀ·x and for what belongs to a
// key), in groups of as many rows as two vector registers have lanes. The rows of the other input are streamed past it:
//
//     tile (streamed × lanes) = streamed rows · packed group,      result (columns × lanes) += columnsᵀ · tile,
//
// both by the one product of common/product_cpu.h. With a lane to a row, a row's sums need no horizontal additions and
// the tile never leaves the first-level cache. Each output is owned by one task and each task is done by one thread
// from start to end: results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/half.h"
#include "../common/product_cpu.h"
#include "attention.h"

namespace artent::attention {

// Rows owned by a task: what a streamed row, once widened and in the second-level cache, is used for.
constexpr int64_t kBlock = 128;
// Streamed rows in a tile: 126 × 16 floats are 8 KiB of the first-level cache, beside 4…16 KiB of a packed group; whole
// blocks of the product's 6 rows.
constexpr int64_t kChunk = 126;

// Rows in a group.
template <typename R>
int64_t group_rows() {
  return 2 * register_bytes() / int64_t(sizeof(R));
}
constexpr int64_t kMaxGroupRows = 32;  // floats with 64-byte registers

inline int64_t blocks(int64_t length, int64_t size) {
  return (length + size - 1) / size;
}

// Keys [start, end) that a query sees by position (masks can hide more), or any other range of rows.
struct Interval {
  int64_t start, end;
  bool empty() const { return start >= end; }
  int64_t length() const { return end - start; }
  Interval operator&(Interval o) const { return {std::max(start, o.start), std::min(end, o.end)}; }
};

inline Interval key_interval(const Visibility& v, int64_t keys, int64_t b, int64_t h, int64_t i) {
  Interval k{0, keys};
  if (v.has_diagonal) k.end = std::min(k.end, i + v.diagonal + 1);
  if (v.key_range != nullptr) {
    const Strides4& s = v.key_range_strides;
    const int64_t* p = v.key_range + b * s.b + h * s.h + i * s.i;
    k = k & Interval{p[0], p[s.j]};
  }
  k.end = std::max(k.end, k.start);
  return k;
}

// The smallest interval that holds both.
inline Interval hull(Interval a, Interval b) {
  if (a.empty() || b.empty()) return a.empty() ? b : a;
  return {std::min(a.start, b.start), std::max(a.end, b.end)};
}

// Rows of a tensor as accumulators with unit stride: the tensor itself where it is that already.
template <typename R>
struct Rows {
  const R* data;
  int64_t stride;
  Rows from(int64_t row) const { return {data + row * stride, stride}; }
};

// `rows` rows from i0 on of a head of x, whose last dimension is `dim`.
template <typename T>
Rows<Accumulator<T>> rows_of(const void* x, const Strides4& s, int64_t b, int64_t h, int64_t i0, int64_t rows,
                             int64_t dim, std::vector<Accumulator<T>>& buffer) {
  const T* p = static_cast<const T*>(x) + b * s.b + h * s.h + i0 * s.i;
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    if (s.j == 1 || dim == 1) return {p, s.i};
  }
  buffer.resize(size_t(rows * dim));
  for (int64_t i = 0; i < rows; ++i) {
    if (s.j == 1) {
      for (int64_t d = 0; d < dim; ++d) buffer[i * dim + d] = widen(p[i * s.i + d]);
    } else {
      for (int64_t d = 0; d < dim; ++d) buffer[i * dim + d] = widen(p[i * s.i + d * s.j]);
    }
  }
  return {buffer.data(), dim};
}

// packed (dim × lanes) = factor · rows i0 … of x, transposed; lanes past the last row hold zeros.
template <typename T>
void pack(const void* x, const Strides4& s, int64_t b, int64_t h, int64_t i0, int64_t rows, int64_t dim, double factor,
          Accumulator<T>* packed) {
  const int64_t lanes = group_rows<Accumulator<T>>();
  const T* p = static_cast<const T*>(x) + b * s.b + h * s.h + i0 * s.i;
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < rows; ++i)
      packed[d * lanes + i] = Accumulator<T>(factor * double(widen(p[i * s.i + d * s.j])));
    std::fill(packed + d * lanes + rows, packed + (d + 1) * lanes, Accumulator<T>(0));
  }
}

// What tasks that own keys stream past them: scale·query in the accumulator's type, so that ⟨scale·q, k⟩ is the same
// number, bit for bit, whether queries or keys stand in the lanes, and so are the probabilities behind A·x and Aᵀ·x;
// and of every chunk of queries the keys that any of them sees, so that a task passes over what it does not meet.
template <typename R>
struct StreamedQueries {
  std::vector<R> scaled;
  std::vector<Interval> seen;
  int64_t heads, queries, dim, chunks;

  explicit StreamedQueries(const Shape& n)
      : scaled(size_t(n.batch * n.heads * n.queries * n.dim)),
        seen(size_t(n.batch * n.heads * blocks(n.queries, kChunk))),
        heads(n.heads),
        queries(n.queries),
        dim(n.dim),
        chunks(blocks(n.queries, kChunk)) {}

  template <typename T>
  void fill(const Logits& a, int64_t b, int64_t h, int64_t chunk) {
    const Strides4& s = a.query_strides;
    const T* p = static_cast<const T*>(a.query) + b * s.b + h * s.h;
    Interval all{0, 0};
    for (int64_t i = chunk * kChunk; i < std::min(queries, (chunk + 1) * kChunk); ++i) {
      R* const out = scaled.data() + ((b * heads + h) * queries + i) * dim;
      for (int64_t d = 0; d < dim; ++d) out[d] = R(a.scale * double(widen(p[i * s.i + d * s.j])));
      all = hull(all, key_interval(a.visibility, a.shape.keys, b, h, i));
    }
    seen[(b * heads + h) * chunks + chunk] = all;
  }
  Rows<R> from(int64_t b, int64_t h, int64_t i0) const {
    return {scaled.data() + ((b * heads + h) * queries + i0) * dim, dim};
  }
  Columns columns() const { return {scaled.data(), {heads * queries * dim, queries * dim, dim, 1}, dim, 1}; }
  // Whether a chunk, which starts at query i0, has a query that may see one of the keys.
  bool meets(int64_t b, int64_t h, int64_t i0, Interval keys) const {
    return !(seen[(b * heads + h) * chunks + i0 / kChunk] & keys).empty();
  }
};

// The first `rows` lanes of result (dim × lanes), times factor, as rows of out with stride `dim`.
template <typename T, typename R>
void unpack(const R* result, int64_t rows, int64_t dim, R factor, T* out) {
  const int64_t lanes = group_rows<R>();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dim; ++d) narrow(factor * result[d * lanes + i], out[i * dim + d]);
  }
}

// The block of kBlock rows that a task owns.
template <typename R>
struct Owned {
  int64_t b, h, first, rows, lanes;  // rows [first, first + rows) of head h
  int64_t groups() const { return blocks(rows, lanes); }
  int64_t rows_in(int64_t group) const { return std::min(lanes, rows - group * lanes); }
  Interval interval() const { return {first, first + rows}; }
};

template <typename R>
Owned<R> owned(int64_t b, int64_t h, int64_t block, int64_t length) {
  return {b, h, block * kBlock, std::min(kBlock, length - block * kBlock), group_rows<R>()};
}

// A block's rows, packed group after group.
template <typename T>
void pack_block(const void* x, const Strides4& s, const Owned<Accumulator<T>>& own, int64_t h, int64_t dim,
                double factor, std::vector<Accumulator<T>>& packed) {
  packed.resize(size_t(own.groups() * own.lanes * dim));
  for (int64_t g = 0; g < own.groups(); ++g) {
    pack<T>(x, s, own.b, h, own.first + g * own.lanes, own.rows_in(g), dim, factor,
            packed.data() + g * own.lanes * dim);
  }
}

// tile (n × lanes) = rows · packed, over dim numbers.
template <typename R>
void dots(Rows<R> rows, int64_t n, int64_t dim, const R* packed, R* tile) {
  product(Product<R>{rows.data, rows.stride, 1, dim, packed, tile, group_rows<R>(), 0, n});
}

// Whether n rows of `count` numbers hold NaN or an infinity.
template <typename R>
struct Scan {
  const R* data;
  int64_t stride, n, count;
  bool* found;
};

template <int Bytes, typename R>
ARTENT_INLINE void scan_rows(const Scan<R>& a) {
  using S = Simd<R, Bytes>;
  typename S::V sum{};  // x − x is zero unless x is one of them
  R rest = 0;
  for (int64_t i = 0; i < a.n; ++i) {
    const R* row = a.data + i * a.stride;
    int64_t c = 0;
    for (; c + S::lanes <= a.count; c += S::lanes) {
      const auto x = S::load(row + c);
      sum += x - x;
    }
    for (; c < a.count; ++c) rest += row[c] - row[c];
  }
  for (int64_t i = 0; i < S::lanes; ++i) rest += sum[i];
  *a.found = rest != 0;
}

ARTENT_ISA_DISPATCH(scan, Scan<float>, scan_rows)
ARTENT_ISA_DISPATCH(scan, Scan<double>, scan_rows)

template <typename R>
bool not_finite(Rows<R> rows, int64_t n, int64_t count) {
  bool found = false;
  scan(Scan<R>{rows.data, rows.stride, n, count, &found});
  return found;
}

// result (columns × lanes) += columnsᵀ · tile, over n streamed rows. A weight of zero takes nothing, even of a row that
// holds NaN or an infinity: such rows (`careful`) are multiplied lane by lane.
template <typename R>
void combine(Rows<R> columns, int64_t n, int64_t count, const R* tile, R* result, bool careful = false) {
  const int64_t lanes = group_rows<R>();
  if (!careful) {
    product(Product<R>{columns.data, 1, columns.stride, n, tile, result, lanes, 0, count, true});
    return;
  }
  for (int64_t r = 0; r < n; ++r) {
    if (!not_finite(columns.from(r), 1, count)) {
      combine(columns.from(r), 1, count, tile + r * lanes, result);
      continue;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const R weight = tile[r * lanes + lane];
      for (int64_t c = 0; c < count && weight != 0; ++c) result[c * lanes + lane] += weight * columns.from(r).data[c];
    }
  }
}

}  // namespace artent::attention

// CPU kernels of the row statistics and their gradient: one block of queries, or one block of keys, at a time.
//
// Memory: one tile of logits a thread, never T_q×T_k. Each block is computed by one thread from start to end and each
// output is owned by one block, so results do not depend on the number of threads. docs/math.md §4.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/gemm.h"
#include "../common/half.h"
#include "../common/vec.h"
#include "online_state.h"
#include "stats.h"
#include "tile_cpu.h"

namespace artent::attention {

// Keys [start, end) that a query may see by position; masks can hide more.
struct KeyInterval {
  int64_t start, end;
};

inline KeyInterval key_interval(const Visibility& v, int64_t keys, int64_t b, int64_t h, int64_t i) {
  KeyInterval k{0, keys};
  if (v.has_diagonal) k.end = std::min(k.end, i + v.diagonal + 1);
  if (v.key_range != nullptr) {
    const Strides4& s = v.key_range_strides;
    const int64_t* p = v.key_range + b * s.b + h * s.h + i * s.i;
    k.start = std::max(k.start, p[0]);
    k.end = std::min(k.end, p[s.j]);
  }
  k.end = std::max(k.end, k.start);
  return k;
}

// One tile of logits: row r holds rows×cols numbers at s + r*kKeyTile; position [0, cols) is key j0 + c.
template <typename R>
struct LogitsTile {
  R* s;
  int64_t rows, cols, j0;
  const KeyInterval* intervals;  // per row, in keys
  MaskKind mask_kind;
  const char* mask;  // at the tile's first element, or null
  int64_t mask_i, mask_j;
};

// Hides what a row may not see: -inf outside its interval (to the end of the last vector) and where the mask says so.
// Returns the vectors that hold at least one visible position.
struct Span {
  int64_t begin, end;  // positions, multiples of the lane count
};

template <int Lanes, typename R>
ARTENT_INLINE Span hide(const LogitsTile<R>& t, int64_t r) {
  constexpr R hidden = -std::numeric_limits<R>::infinity();
  R* s = t.s + r * kKeyTile;
  const int64_t lo = std::max<int64_t>(t.intervals[r].start - t.j0, 0);
  const int64_t hi = std::min(t.intervals[r].end - t.j0, t.cols);
  if (lo >= hi) return {0, 0};
  const Span span{lo / Lanes * Lanes, (hi + Lanes - 1) / Lanes * Lanes};
  for (int64_t c = span.begin; c < lo; ++c) s[c] = hidden;
  for (int64_t c = hi; c < span.end; ++c) s[c] = hidden;
  if (t.mask_kind == MaskKind::boolean) {
    const bool* mask = reinterpret_cast<const bool*>(t.mask) + r * t.mask_i;
    for (int64_t c = lo; c < hi; ++c) s[c] = mask[c * t.mask_j] ? s[c] : hidden;
  } else if (t.mask_kind == MaskKind::additive) {
    const R* mask = reinterpret_cast<const R*>(t.mask) + r * t.mask_i;
    for (int64_t c = lo; c < hi; ++c) s[c] += mask[c * t.mask_j];
  }
  return span;
}

template <typename R>
struct ForwardTile {
  LogitsTile<R> logits;
  OnlineState<double>* state;  // per row
};

// Streams a tile into the state of each of its rows.
template <int Bytes, typename R>
ARTENT_INLINE void update_rows(const ForwardTile<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  constexpr R lowest = -std::numeric_limits<R>::infinity();
  for (int64_t r = 0; r < a.logits.rows; ++r) {
    const Span span = hide<S::lanes>(a.logits, r);
    const R* s = a.logits.s + r * kKeyTile;
    V top = S::splat(lowest);
    for (int64_t c = span.begin; c < span.end; c += S::lanes) top = S::max(top, S::load(s + c));
    const R m = S::horizontal_max(top);
    if (m == lowest) continue;  // nothing visible here
    V L = {}, t = {}, L2 = {};
    for (int64_t c = span.begin; c < span.end; c += S::lanes) {
      V x = S::load(s + c) - m;
      const V e = S::exp_nonpositive(x);
      x = (e == S::splat(0)) ? e : x;  // 0·(−inf) is hidden, not NaN
      L += e;
      t += e * x;
      L2 += e * e;
    }
    OnlineState<double> tile;
    tile.m = m;
    tile.L = S::horizontal_sum(L);
    tile.t = S::horizontal_sum(t);
    tile.L2 = S::horizontal_sum(L2);
    a.state[r].merge(tile);
  }
}

template <typename R>
struct BackwardTile {
  LogitsTile<R> logits;
  const R *lse, *entropy, *purity;                 // at the tile's first row
  const R *grad_lse, *grad_entropy, *grad_purity;  // the same; null where absent
};

// Replaces the logits by ∂loss/∂s = p·(g_lse − g_H(ln p + H) + 2 g_P(p − P)), with ln p = s − lse; zero where hidden.
template <int Bytes, typename R>
ARTENT_INLINE void gradient_rows(const BackwardTile<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  for (int64_t r = 0; r < a.logits.rows; ++r) {
    R* s = a.logits.s + r * kKeyTile;
    const Span span = hide<S::lanes>(a.logits, r);
    const R lse = a.lse[r];
    const bool empty = span.begin == span.end || lse == -std::numeric_limits<R>::infinity();
    std::fill(s, s + (empty ? a.logits.cols : span.begin), R(0));
    if (empty) continue;
    const R g_lse = a.grad_lse ? a.grad_lse[r] : R(0), g_H = a.grad_entropy ? a.grad_entropy[r] : R(0),
            g_P = a.grad_purity ? a.grad_purity[r] : R(0), H = a.entropy[r], P = a.purity[r];
    for (int64_t c = span.begin; c < span.end; c += S::lanes) {
      const V log_p = S::load(s + c) - lse;
      const V p = S::exp_nonpositive(log_p);
      const V ds = p * (g_lse - g_H * (log_p + H) + R(2) * g_P * (p - P));
      S::store(s + c, (p == S::splat(0)) ? p : ds);
    }
    std::fill(s + span.end, s + std::max(span.end, a.logits.cols), R(0));
  }
}

ARTENT_ISA_DISPATCH(update_tile, ForwardTile<float>, update_rows)
ARTENT_ISA_DISPATCH(update_tile, ForwardTile<double>, update_rows)
ARTENT_ISA_DISPATCH(gradient_tile, BackwardTile<float>, gradient_rows)
ARTENT_ISA_DISPATCH(gradient_tile, BackwardTile<double>, gradient_rows)

// A block of rows of query or key as accumulators with unit stride: the tensor itself where it already is that.
template <typename T>
struct Rows {
  using R = Accumulator<T>;
  const R* data;
  int64_t stride;
};

template <typename T>
Rows<T> rows_of(const void* base, const Strides4& s, int64_t b, int64_t h, int64_t i0, int64_t rows, int64_t dim,
                std::vector<Accumulator<T>>& buffer) {
  const T* p = static_cast<const T*>(base) + b * s.b + h * s.h + i0 * s.i;
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    if (s.j == 1 && s.i >= dim) return {p, s.i};
  }
  buffer.resize(size_t(rows * dim));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dim; ++d) buffer[i * dim + d] = widen(p[i * s.i + d * s.j]);
  }
  return {buffer.data(), dim};
}

// What one thread needs; reused from block to block.
template <typename T>
struct Workspace {
  using R = Accumulator<T>;
  std::vector<R> query, key, gradient;
  std::vector<R> logits = std::vector<R>(size_t(kQueryTile * kKeyTile));
  std::vector<KeyInterval> intervals = std::vector<KeyInterval>(size_t(kQueryTile));
  std::vector<OnlineState<double>> state = std::vector<OnlineState<double>>(size_t(kQueryTile));
};

// Intervals of the rows [i0, i0+rows) and the smallest interval that holds them all.
template <typename T>
KeyInterval row_intervals(const Visibility& v, int64_t keys, int64_t b, int64_t h, int64_t i0, int64_t rows,
                          Workspace<T>& w) {
  KeyInterval all{keys, 0};
  for (int64_t r = 0; r < rows; ++r) {
    const KeyInterval k = w.intervals[r] = key_interval(v, keys, b, h, i0 + r);
    if (k.start == k.end) continue;
    all = {std::min(all.start, k.start), std::max(all.end, k.end)};
  }
  return all;
}

// scale·QKᵀ of a tile, with what is needed to mask it.
template <typename T, typename Params>
LogitsTile<Accumulator<T>> logits_tile(const Params& p, const Rows<T>& q, const Rows<T>& k, int64_t b, int64_t h,
                                       int64_t i0, int64_t rows, int64_t j0, int64_t cols, Workspace<T>& w) {
  using R = Accumulator<T>;
  gemm(false, true, rows, cols, p.shape.dim, R(p.scale), q.data, q.stride, k.data, k.stride, R(0), w.logits.data(),
       kKeyTile);
  const Visibility& v = p.visibility;
  const Strides4& s = v.mask_strides;
  const int64_t size = v.mask_kind == MaskKind::boolean ? 1 : int64_t(sizeof(R));
  const char* mask = static_cast<const char*>(v.mask) + size * (b * s.b + h * s.h + i0 * s.i + j0 * s.j);
  return {w.logits.data(), rows, cols, j0, w.intervals.data(), v.mask_kind, v.mask ? mask : nullptr, s.i, s.j};
}

template <typename T>
void forward_block(const StatsForward& p, int64_t b, int64_t h, int64_t i0, Workspace<T>& w) {
  using R = Accumulator<T>;
  const StatsShape& n = p.shape;
  const int64_t rows = std::min(kQueryTile, n.queries - i0), hk = h / (n.heads / n.key_heads);
  const KeyInterval all = row_intervals<T>(p.visibility, n.keys, b, h, i0, rows, w);
  const Rows<T> q = rows_of<T>(p.query, p.query_strides, b, h, i0, rows, n.dim, w.query);
  std::fill(w.state.begin(), w.state.end(), OnlineState<double>{});
  for (int64_t j0 = all.start; j0 < all.end; j0 += kKeyTile) {
    const int64_t cols = std::min(kKeyTile, all.end - j0);
    const Rows<T> k = rows_of<T>(p.key, p.key_strides, b, hk, j0, cols, n.dim, w.key);
    update_tile(ForwardTile<R>{logits_tile<T>(p, q, k, b, h, i0, rows, j0, cols, w), w.state.data()});
  }
  const int64_t at = (b * n.heads + h) * n.queries + i0;
  for (int64_t r = 0; r < rows; ++r) {
    static_cast<R*>(p.lse)[at + r] = R(w.state[r].lse());
    static_cast<R*>(p.entropy)[at + r] = R(w.state[r].entropy());
    static_cast<R*>(p.purity)[at + r] = R(w.state[r].purity());
  }
}

template <typename R>
BackwardTile<R> with_rows(const StatsBackward& p, const LogitsTile<R>& t, int64_t at) {
  const auto row = [at](const void* x) { return x == nullptr ? nullptr : static_cast<const R*>(x) + at; };
  return {t, row(p.lse), row(p.entropy), row(p.purity), row(p.grad_lse), row(p.grad_entropy), row(p.grad_purity)};
}

template <typename T>
void store_rows(const std::vector<Accumulator<T>>& from, void* to, int64_t offset, int64_t count) {
  T* out = static_cast<T*>(to) + offset;
  for (int64_t i = 0; i < count; ++i) narrow(from[i], out[i]);
}

// ∂loss/∂query of one block of queries: scale · dS · K.
template <typename T>
void backward_query_block(const StatsBackward& p, int64_t b, int64_t h, int64_t i0, Workspace<T>& w) {
  using R = Accumulator<T>;
  const StatsShape& n = p.shape;
  const int64_t rows = std::min(kQueryTile, n.queries - i0), hk = h / (n.heads / n.key_heads);
  const int64_t at = (b * n.heads + h) * n.queries + i0;
  const KeyInterval all = row_intervals<T>(p.visibility, n.keys, b, h, i0, rows, w);
  const Rows<T> q = rows_of<T>(p.query, p.query_strides, b, h, i0, rows, n.dim, w.query);
  w.gradient.assign(size_t(rows * n.dim), R(0));
  for (int64_t j0 = all.start; j0 < all.end; j0 += kKeyTile) {
    const int64_t cols = std::min(kKeyTile, all.end - j0);
    const Rows<T> k = rows_of<T>(p.key, p.key_strides, b, hk, j0, cols, n.dim, w.key);
    gradient_tile(with_rows<R>(p, logits_tile<T>(p, q, k, b, h, i0, rows, j0, cols, w), at));
    gemm(false, false, rows, n.dim, cols, R(p.scale), w.logits.data(), kKeyTile, k.data, k.stride, R(1),
         w.gradient.data(), n.dim);
  }
  store_rows<T>(w.gradient, p.grad_query, at * n.dim, rows * n.dim);
}

// ∂loss/∂key of one block of keys: scale · dSᵀ · Q, summed over the query heads that share these keys.
template <typename T>
void backward_key_block(const StatsBackward& p, int64_t b, int64_t hk, int64_t j0, Workspace<T>& w) {
  using R = Accumulator<T>;
  const StatsShape& n = p.shape;
  const int64_t cols = std::min(kKeyBlock, n.keys - j0), group = n.heads / n.key_heads;
  const Rows<T> k = rows_of<T>(p.key, p.key_strides, b, hk, j0, cols, n.dim, w.key);
  w.gradient.assign(size_t(cols * n.dim), R(0));
  for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    for (int64_t i0 = 0; i0 < n.queries; i0 += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, n.queries - i0);
      const KeyInterval all = row_intervals<T>(p.visibility, n.keys, b, h, i0, rows, w);
      if (all.end <= j0 || all.start >= j0 + cols) continue;
      const Rows<T> q = rows_of<T>(p.query, p.query_strides, b, h, i0, rows, n.dim, w.query);
      const int64_t at = (b * n.heads + h) * n.queries + i0;
      gradient_tile(with_rows<R>(p, logits_tile<T>(p, q, k, b, h, i0, rows, j0, cols, w), at));
      gemm(true, false, cols, n.dim, rows, R(p.scale), w.logits.data(), kKeyTile, q.data, q.stride, R(1),
           w.gradient.data(), n.dim);
    }
  }
  store_rows<T>(w.gradient, p.grad_key, ((b * n.key_heads + hk) * n.keys + j0) * n.dim, cols * n.dim);
}

}  // namespace artent::attention

// A·x of one block of queries, or Aᵀ·x of one block of keys, on the CPU, from the stored lse. docs/math.md §4.
#pragma once

#include "lse_cpu.h"

namespace artent::attention {

// Logits become probabilities e^{s − lse}; the lse of an empty row is +∞ here, so that its probabilities are zero. With
// a single column x they are summed up at once instead: a product of one column would wait for its own additions.
template <typename R>
struct ProbabilityTile {
  R* s;
  int64_t n;
  const R *lse, *low;  // of every lane, or of every streamed row; low in units of ln 2
  bool by_lane;
  const R* x;  // of every streamed row, or null
  int64_t x_stride;
  R* result;     // of every lane: Σ p·x is added
  bool nan_lse;  // an lse is NaN: hidden logits are selected, as −∞ − NaN is NaN
};

template <int Bytes, int kRows, typename R, typename V>
ARTENT_INLINE void exponentiate_rows(const ProbabilityTile<R>& a, int64_t r, const V (&lse)[2], const V (&low)[2],
                                     V (&sum)[4]) {
  using S = Simd<R, Bytes>;
  R* const at = a.s + 2 * r * S::lanes;
  V x[2 * kRows], p[2 * kRows];
  for (int i = 0; i < 2 * kRows; ++i) {
    const V top = a.by_lane ? lse[i % 2] : S::splat(a.lse[r + i / 2]);
    const V rest = a.by_lane ? low[i % 2] : S::splat(a.low[r + i / 2]);
    x[i] = (S::load(at + i * S::lanes) - top) * R(kLog2e) - rest;
  }
  S::exp2_nonpositive(x, p);
  for (int i = 0; i < 2 * kRows && a.nan_lse; ++i)
    p[i] = (S::load(at + i * S::lanes) == S::splat(-std::numeric_limits<R>::infinity())) ? S::splat(0) : p[i];
  if (a.x == nullptr) {
    for (int i = 0; i < 2 * kRows; ++i) S::store(at + i * S::lanes, p[i]);
  } else {
    for (int i = 0; i < 2 * kRows; ++i) sum[i] += p[i] * a.x[(r + i / 2) * a.x_stride];
  }
}

template <int Bytes, typename R>
ARTENT_INLINE void exponentiate(const ProbabilityTile<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  V lse[2], low[2], sum[4] = {};
  for (int v = 0; v < 2; ++v) {
    lse[v] = S::load(a.lse + v * S::lanes);
    low[v] = S::load(a.low + v * S::lanes);
  }
  int64_t r = 0;
  for (; r + 2 <= a.n; r += 2) exponentiate_rows<Bytes, 2>(a, r, lse, low, sum);
  if (r < a.n) exponentiate_rows<Bytes, 1>(a, r, lse, low, sum);
  for (int v = 0; v < 2 && a.x != nullptr; ++v) {
    R* const at = a.result + v * S::lanes;
    S::store(at, S::load(at) + (sum[v] + sum[v + 2]));
  }
}

ARTENT_ISA_DISPATCH(probabilities, ProbabilityTile<float>, exponentiate)
ARTENT_ISA_DISPATCH(probabilities, ProbabilityTile<double>, exponentiate)

// Of `count` queries from `at` on, with room for a group's last lanes. Returns whether one is NaN.
template <typename R>
bool load_lse(const RowLse<R>& rows, int64_t at, int64_t count, std::vector<R>& lse, std::vector<R>& low) {
  lse.assign(size_t(count + kMaxGroupRows), R(0));
  low.assign(size_t(count + kMaxGroupRows), R(0));
  bool nan = false;
  for (int64_t i = 0; i < count; ++i) {
    lse[i] = rows.subtracted(at + i);
    nan = nan || lse[i] != lse[i];
    low[i] = R(kLog2e) * rows.subtracted_low(at + i);
  }
  return nan;
}

// T: what query and key hold. X: what x holds, T or the accumulator.
template <typename T, typename X>
struct ApplyWorkspace {
  using R = Accumulator<T>;
  std::vector<R> packed, streamed, x, result, lse, low;
  std::vector<R> s = std::vector<R>(size_t(kChunk * kMaxGroupRows));
  Sight<R> sight{false};
};

// Result of the block: kTranspose owns keys and streams queries. An x that is suspect may hold NaN or an infinity.
template <bool kTranspose, typename T, typename X>
void apply_block(const Apply& p, const RowLse<Accumulator<T>>& rows, const StreamedQueries<Accumulator<T>>& queries,
                 bool suspect, int64_t b, int64_t h, int64_t block, ApplyWorkspace<T, X>& w) {
  using R = Accumulator<T>;
  const Shape& n = p.a.shape;
  const int64_t hk = h / (n.heads / n.key_heads), columns = p.x.columns, row0 = (b * n.heads + h) * n.queries;
  const Owned<R> own = owned<R>(b, h, block, kTranspose ? n.keys : n.queries);
  const int64_t size = columns * own.lanes;
  w.sight.owns_keys = kTranspose;
  bool nan_lse = false;
  if (kTranspose) {
    pack_block<T>(p.a.key, p.a.key_strides, own, hk, n.dim, 1.0, w.packed);
  } else {
    pack_block<T>(p.a.query, p.a.query_strides, own, h, n.dim, p.a.scale, w.packed);
    nan_lse = load_lse(rows, row0 + own.first, own.rows, w.lse, w.low);
  }
  w.result.assign(size_t(own.groups() * size), R(0));

  Rows<R> streamed{}, x{};
  bool careful = false, single = false;
  const auto prepare = [&](Interval chunk) {
    const int64_t first = chunk.start, length = chunk.length();
    if (kTranspose) {
      if (!queries.meets(b, h, first, own.interval())) return false;
      w.sight.look(p.a, b, h, first, length);
      nan_lse = load_lse(rows, row0 + first, length, w.lse, w.low);
      streamed = queries.from(b, h, first);
    } else {
      streamed = rows_of<T>(p.a.key, p.a.key_strides, b, hk, first, length, n.dim, w.streamed);
    }
    x = rows_of<X>(p.x.data, p.x.strides, b, h, first, length, columns, w.x);
    careful = suspect && not_finite(x, length, columns);
    single = columns == 1 && !careful;
    return true;
  };
  const Interval all = kTranspose ? Interval{0, n.queries} : w.sight.look(p.a, own);
  for_each_tile(own, w.sight, h, all, prepare, [&](const TileAt& at) {
    logits(p.a, w.sight, at, streamed.from(at.skip), w.packed.data() + at.group * own.lanes * n.dim, w.s.data());
    R* const result = w.result.data() + at.group * size;
    probabilities(ProbabilityTile<R>{w.s.data(), at.n, w.lse.data() + at.query0, w.low.data() + at.query0, !kTranspose,
                                     single ? x.from(at.skip).data : nullptr, x.stride, result, nan_lse});
    if (!single) combine(x.from(at.skip), at.n, columns, w.s.data(), result, careful);
  });

  X* const out = static_cast<X*>(p.out);
  const int64_t to = (b * n.heads + h) * (kTranspose ? n.keys : n.queries) + own.first;
  for (int64_t g = 0; g < own.groups(); ++g) {
    unpack(w.result.data() + g * size, own.rows_in(g), columns, R(1), out + (to + g * own.lanes) * columns);
  }
}

}  // namespace artent::attention

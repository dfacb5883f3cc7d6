// A tile of logits on the CPU: products, soft cap, masks.
#pragma once

#include "tile_cpu.h"

namespace artent::attention {

// Hides (−∞) what does not lie in an interval: of a lane, whose streamed rows r it bounds, or of a streamed row, whose
// lanes it bounds. Bounds relative to the tile's first row or lane.
template <typename R>
struct Bounds {
  R* s;
  int64_t n;
  const R *lo, *hi;  // of every lane, or of every streamed row
  bool by_lane;
};

template <int Bytes, typename R>
ARTENT_INLINE void hide_rows(const Bounds<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  const V hidden = S::splat(-std::numeric_limits<R>::infinity());
  R lane_numbers[2 * S::lanes];
  for (int64_t i = 0; i < 2 * S::lanes; ++i) lane_numbers[i] = R(i);
  for (int64_t v = 0; v < 2; ++v) {
    const V lane = S::load(lane_numbers + v * S::lanes);
    V lo = S::load(a.lo + v * S::lanes), hi = S::load(a.hi + v * S::lanes);
    for (int64_t r = 0; r < a.n; ++r) {
      R* const at = a.s + (2 * r + v) * S::lanes;
      const V position = a.by_lane ? S::splat(R(r)) : lane;
      if (!a.by_lane) {
        lo = S::splat(a.lo[r]);
        hi = S::splat(a.hi[r]);
      }
      S::store(at, ((position >= lo) & (position < hi)) ? S::load(at) : hidden);
    }
  }
}

ARTENT_ISA_DISPATCH(hide, Bounds<float>, hide_rows)
ARTENT_ISA_DISPATCH(hide, Bounds<double>, hide_rows)

template <typename R>
struct Cap {
  R* s;
  int64_t count;  // a number of whole vectors
  R cap;
};

template <int Bytes, typename R>
ARTENT_INLINE void cap_logits(const Cap<R>& a) {
  using S = Simd<R, Bytes>;
  for (int64_t i = 0; i < a.count; i += S::lanes) S::store(a.s + i, a.cap * S::tanh(S::load(a.s + i) / a.cap));
}

ARTENT_ISA_DISPATCH(soften, Cap<float>, cap_logits)
ARTENT_ISA_DISPATCH(soften, Cap<double>, cap_logits)

// What a block and the rows streamed past it see of each other.
template <typename R>
struct Sight {
  bool owns_keys;
  int64_t lanes = group_rows<R>();
  std::vector<Interval> queries;  // visible keys of the block's queries or, where keys are owned, of the chunk's
  std::vector<Interval> groups;   // where queries are owned: the keys that any query of a group sees
  Interval common{0, 0};          // keys that every one of `queries` sees
  std::vector<R> lo = std::vector<R>(size_t(kChunk + kMaxGroupRows)), hi = lo;

  // Looks at the queries [i0, i0 + n); returns the keys that any of them sees.
  Interval look(const Logits& a, int64_t b, int64_t h, int64_t i0, int64_t n) {
    Interval all{0, 0};
    common = {0, a.shape.keys};
    queries.resize(size_t(n));
    for (int64_t i = 0; i < n; ++i) {
      queries[i] = key_interval(a.visibility, a.shape.keys, b, h, i0 + i);
      all = hull(all, queries[i]);
      common = common & queries[i];
    }
    return all;
  }

  // The rows to stream past a block of queries.
  Interval look(const Logits& a, const Owned<R>& own) {
    const Interval all = look(a, own.b, own.h, own.first, own.rows);
    groups.assign(size_t(own.groups()), Interval{0, 0});
    for (int64_t i = 0; i < own.rows; ++i) groups[i / lanes] = hull(groups[i / lanes], queries[i]);
    return all;
  }

  // Of a chunk the rows that a group has to meet: the keys that its queries see, or from the first to the last query
  // that sees any of its keys.
  Interval part(const Owned<R>& own, int64_t group, Interval chunk) const {
    if (!owns_keys) return chunk & groups[group];
    const int64_t key0 = own.first + group * lanes;
    const Interval keys{key0, key0 + own.rows_in(group)};
    Interval seen = chunk;
    while (!seen.empty() && (queries[seen.start - chunk.start] & keys).empty()) ++seen.start;
    while (!seen.empty() && (queries[seen.end - 1 - chunk.start] & keys).empty()) --seen.end;
    return seen;
  }
};

// One tile: `n` streamed rows from `first` on, `skip` rows into their chunk, against the `rows` lanes of a group that
// starts at `own_first`.
struct TileAt {
  int64_t b, h, group, own_first, rows, skip, first, n;
  int64_t query0;  // in Sight::queries, of the first lane (queries owned) or of the first streamed row (keys owned)
};

// The rows `all` of head h streamed past a block: prepare(chunk) for every chunk, which says whether the block may meet
// any of it, then tile(at) for every group that does.
template <typename R, typename Prepare, typename Tile>
void for_each_tile(const Owned<R>& own, const Sight<R>& sight, int64_t h, Interval all, const Prepare& prepare,
                   const Tile& tile) {
  for (int64_t first = all.start; first < all.end; first += kChunk) {
    const Interval chunk{first, std::min(first + kChunk, all.end)};
    if (!prepare(chunk)) continue;
    for (int64_t g = 0; g < own.groups(); ++g) {
      const Interval part = sight.part(own, g, chunk);
      if (part.empty()) continue;
      const int64_t lane0 = g * own.lanes, skip = part.start - first;
      tile(TileAt{own.b, h, g, own.first + lane0, own.rows_in(g), skip, part.start, part.length(),
                  sight.owns_keys ? skip : lane0});
    }
  }
}

// −∞ where a query does not see a key by position.
template <typename R>
void hide_out_of_sight(Sight<R>& sight, const TileAt& t, R* s) {
  const bool by_lane = !sight.owns_keys;
  const int64_t bounded = by_lane ? t.rows : t.n, length = by_lane ? t.n : t.rows;
  const int64_t key0 = by_lane ? t.first : t.own_first;
  if (sight.common.start <= key0 && key0 + length <= sight.common.end) return;
  bool whole = true;
  for (int64_t q = 0; q < bounded; ++q) {
    const Interval k = sight.queries[t.query0 + q];
    whole = whole && k.start <= key0 && k.end >= key0 + length;
    sight.lo[q] = R(std::clamp<int64_t>(k.start - key0, 0, length));
    sight.hi[q] = R(std::clamp<int64_t>(k.end - key0, 0, length));
  }
  if (whole) return;
  if (by_lane) {  // lanes past the last row: nobody reads them
    std::fill(sight.lo.begin() + t.rows, sight.lo.begin() + sight.lanes, R(0));
    std::fill(sight.hi.begin() + t.rows, sight.hi.begin() + sight.lanes, R(length));
  }
  hide(Bounds<R>{s, t.n, sight.lo.data(), sight.hi.data(), by_lane});
}

// −∞ where a query does not see a key, by position and by the mask.
template <typename R>
void hide_invisible(const Logits& a, Sight<R>& sight, const TileAt& t, R* s) {
  hide_out_of_sight(sight, t, s);
  const Visibility& v = a.visibility;
  if (v.mask_kind == MaskKind::none) return;
  const bool by_lane = !sight.owns_keys;
  const Strides4& m = v.mask_strides;
  const int64_t i0 = by_lane ? t.own_first : t.first, key0 = by_lane ? t.first : t.own_first;
  const int64_t at = t.b * m.b + t.h * m.h + i0 * m.i + key0 * m.j;
  const int64_t lane_step = by_lane ? m.i : m.j, row_step = by_lane ? m.j : m.i;
  for (int64_t lane = 0; lane < t.rows; ++lane) {
    R* const column = s + lane;
    if (v.mask_kind == MaskKind::boolean) {
      const bool* mask = static_cast<const bool*>(v.mask) + at + lane * lane_step;
      for (int64_t r = 0; r < t.n; ++r) {
        if (!mask[r * row_step]) column[r * sight.lanes] = -std::numeric_limits<R>::infinity();
      }
    } else {
      const R* mask = static_cast<const R*>(v.mask) + at + lane * lane_step;
      for (int64_t r = 0; r < t.n; ++r) {
        if (column[r * sight.lanes] != -std::numeric_limits<R>::infinity())
          column[r * sight.lanes] += mask[r * row_step];
      }
    }
  }
}

// s = cap(scale·⟨q, k⟩) + mask; the packed group carries the scale. Before the mask the capped logits are copied
// to `capped` where it is not null.
template <typename R>
void logits(const Logits& a, Sight<R>& sight, const TileAt& t, Rows<R> streamed, const R* packed, R* s,
            R* capped = nullptr) {
  dots(streamed, t.n, a.shape.dim, packed, s);
  if (a.softcap > 0) {
    soften(Cap<R>{s, t.n * sight.lanes, R(a.softcap)});
    if (capped != nullptr) std::copy(s, s + t.n * sight.lanes, capped);
  }
  hide_invisible(a, sight, t, s);
}

}  // namespace artent::attention

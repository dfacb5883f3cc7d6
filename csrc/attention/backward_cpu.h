// The gradients of the row statistics and of A·value on the CPU: of one block of queries, or of one block of keys (and
// values) over all query heads that read them. docs/math.md §4.
#pragma once

#include "lse_cpu.h"

namespace artent::attention {

// ∂loss/∂s = p·(base + slope·ln p + curve·p + dP) with ln p = s − lse − low: what a row brings, one number a lane or a
// row. base = g_lse − g_H·H − 2 g_P·P − delta, slope = −g_H, curve = 2 g_P.
template <typename R>
struct RowTerms {
  std::vector<R> lse, low, base, slope, curve;

  // Of `count` queries from row `at` on.
  void load(const Backward& p, const RowLse<R>& rows, int64_t at, int64_t count) {
    for (auto* x : {&lse, &low, &base, &slope, &curve}) x->assign(size_t(count + kMaxGroupRows), R(0));
    const auto field = [at](const void* x, int64_t i) {
      return x == nullptr ? R(0) : static_cast<const R*>(x)[at + i];
    };
    for (int64_t i = 0; i < count; ++i) {
      const R g_H = field(p.grad_entropy, i), g_P = field(p.grad_purity, i);
      lse[i] = rows.subtracted(at + i);
      low[i] = rows.subtracted_low(at + i);
      base[i] = field(p.grad_lse, i) - g_H * field(p.entropy, i) - 2 * g_P * field(p.purity, i) - field(p.delta, i);
      slope[i] = -g_H;
      curve[i] = 2 * g_P;
    }
  }
};

// A tile of logits becomes the gradient at ⟨q, k⟩·scale; `probability` receives p where it is not null.
template <typename R>
struct GradientTile {
  R* s;
  int64_t n;
  const R *lse, *low, *base, *slope, *curve;  // of every lane, or of every streamed row
  bool by_lane;
  const R* through_value;  // dP = ⟨grad_out, value⟩, or null
  const R* capped;         // logits after the cap and before the mask, or null
  R cap;
  R* probability;
};

template <int Bytes, typename R>
ARTENT_INLINE void differentiate(const GradientTile<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  const V none = S::splat(0);
  for (int64_t v = 0; v < 2; ++v) {
    const int64_t at = v * S::lanes;
    V lse = S::load(a.lse + at), low = S::load(a.low + at), base = S::load(a.base + at), slope = S::load(a.slope + at),
      curve = S::load(a.curve + at);
    for (int64_t r = 0; r < a.n; ++r) {
      const int64_t i = (2 * r + v) * S::lanes;
      if (!a.by_lane) {
        lse = S::splat(a.lse[r]);
        low = S::splat(a.low[r]);
        base = S::splat(a.base[r]);
        slope = S::splat(a.slope[r]);
        curve = S::splat(a.curve[r]);
      }
      const V log_p = (S::load(a.s + i) - lse) - low, log2_p[1] = {log_p * R(kLog2e)};
      V probability[1];
      S::exp2_nonpositive(log2_p, probability);
      // A hidden logit is selected: −∞ less an lse of NaN is NaN.
      const V p = (S::load(a.s + i) == S::splat(-std::numeric_limits<R>::infinity())) ? none : probability[0];
      V inner = base + slope * log_p + curve * p;
      if (a.through_value != nullptr) inner += S::load(a.through_value + i);
      if (a.capped != nullptr) {
        const V u = S::load(a.capped + i) / a.cap;
        inner *= R(1) - u * u;
      }
      S::store(a.s + i, (p == none) ? none : p * inner);  // ln p may be infinite where p is 0
      if (a.probability != nullptr) S::store(a.probability + i, p);
    }
  }
}

ARTENT_ISA_DISPATCH(gradients, GradientTile<float>, differentiate)
ARTENT_ISA_DISPATCH(gradients, GradientTile<double>, differentiate)

// Which of the rows that are multiplied with weights may hold NaN or an infinity.
struct Suspects {
  bool queries, keys, grad_out;
};

template <typename T>
struct BackwardWorkspace {
  using R = Accumulator<T>;
  static std::vector<R> tile() { return std::vector<R>(size_t(kChunk * kMaxGroupRows)); }
  std::vector<R> packed, packed_value, streamed, streamed_value, result, result_value;
  std::vector<R> s = tile(), capped = tile(), through_value = tile(), probability = tile();
  Sight<R> sight{false};
  RowTerms<R> terms;
};

// The gradient tile of the chunk's rows `streamed` and, beside them, those of value or grad_out.
template <typename T>
void gradient_tile(const Backward& p, const TileAt& at, Rows<Accumulator<T>> streamed, Rows<Accumulator<T>> values,
                   bool with_probability, BackwardWorkspace<T>& w) {
  using R = Accumulator<T>;
  const int64_t columns = p.value.columns, lane0 = at.group * w.sight.lanes, q = at.query0;
  const bool capped = p.a.softcap > 0, through_value = columns > 0;
  logits(p.a, w.sight, at, streamed.from(at.skip), w.packed.data() + lane0 * p.a.shape.dim, w.s.data(),
         capped ? w.capped.data() : nullptr);
  if (through_value)
    dots(values.from(at.skip), at.n, columns, w.packed_value.data() + lane0 * columns, w.through_value.data());
  const RowTerms<R>& t = w.terms;
  gradients(GradientTile<R>{w.s.data(), at.n, t.lse.data() + q, t.low.data() + q, t.base.data() + q, t.slope.data() + q,
                            t.curve.data() + q, !w.sight.owns_keys, through_value ? w.through_value.data() : nullptr,
                            capped ? w.capped.data() : nullptr, R(p.a.softcap),
                            with_probability ? w.probability.data() : nullptr});
}

// ∂loss/∂query of one block of queries: scale · ds · K.
template <typename T>
void backward_query_block(const Backward& p, const RowLse<Accumulator<T>>& rows, const Suspects& suspects, int64_t b,
                          int64_t h, int64_t block, BackwardWorkspace<T>& w) {
  using R = Accumulator<T>;
  const Shape& n = p.a.shape;
  const int64_t hk = h / (n.heads / n.key_heads), columns = p.value.columns;
  const int64_t row0 = (b * n.heads + h) * n.queries;
  const Owned<R> own = owned<R>(b, h, block, n.queries);
  const int64_t size = n.dim * own.lanes;
  w.sight.owns_keys = false;
  pack_block<T>(p.a.query, p.a.query_strides, own, h, n.dim, p.a.scale, w.packed);
  const bool through_value = p.value.columns > 0;
  if (through_value) pack_block<T>(p.grad_out.data, p.grad_out.strides, own, h, columns, 1.0, w.packed_value);
  w.terms.load(p, rows, row0 + own.first, own.rows);
  w.result.assign(size_t(own.groups() * size), R(0));
  Rows<R> keys{}, values{};
  bool careful = false;
  const auto prepare = [&](Interval chunk) {
    const int64_t j0 = chunk.start, length = chunk.length();
    keys = rows_of<T>(p.a.key, p.a.key_strides, b, hk, j0, length, n.dim, w.streamed);
    if (through_value)
      values = rows_of<T>(p.value.data, p.value.strides, b, h / p.value.group, j0, length, columns, w.streamed_value);
    careful = suspects.keys && not_finite(keys, length, n.dim);
    return true;
  };
  for_each_tile(own, w.sight, h, w.sight.look(p.a, own), prepare, [&](const TileAt& at) {
    gradient_tile<T>(p, at, keys, values, false, w);
    combine(keys.from(at.skip), at.n, n.dim, w.s.data(), w.result.data() + at.group * size, careful);
  });
  T* const out = static_cast<T*>(p.grad_query) + (row0 + own.first) * n.dim;
  for (int64_t g = 0; g < own.groups(); ++g)
    unpack(w.result.data() + g * size, own.rows_in(g), n.dim, R(p.a.scale), out + g * own.lanes * n.dim);
}

// ∂loss/∂key = scale · dsᵀ · Q and ∂loss/∂value = Aᵀ · grad_out of one block of keys, summed over the query heads that
// share them (values of every query head are written head by head).
template <typename T>
void backward_key_block(const Backward& p, const RowLse<Accumulator<T>>& rows,
                        const StreamedQueries<Accumulator<T>>& scaled, const Suspects& suspects, int64_t b, int64_t hk,
                        int64_t block, BackwardWorkspace<T>& w) {
  using R = Accumulator<T>;
  const Shape& n = p.a.shape;
  const int64_t group = n.heads / n.key_heads, columns = p.value.columns;
  const Owned<R> own = owned<R>(b, hk, block, n.keys);
  const int64_t size = n.dim * own.lanes, value_size = columns * own.lanes;
  const bool through_value = p.value.columns > 0, with_value = p.grad_value != nullptr;
  w.sight.owns_keys = true;
  pack_block<T>(p.a.key, p.a.key_strides, own, hk, n.dim, 1.0, w.packed);
  w.result.assign(size_t(own.groups() * size), R(0));
  for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    const bool first_of_value = h % p.value.group == 0;
    if (through_value && first_of_value) {
      pack_block<T>(p.value.data, p.value.strides, own, h / p.value.group, columns, 1.0, w.packed_value);
      w.result_value.assign(size_t(own.groups() * value_size), R(0));
    }
    Rows<R> queries{}, grad_out{};
    bool careful = false, careful_value = false;
    const auto prepare = [&](Interval chunk) {
      const int64_t i0 = chunk.start, length = chunk.length();
      if (!scaled.meets(b, h, i0, own.interval())) return false;
      w.sight.look(p.a, b, h, i0, length);
      w.terms.load(p, rows, (b * n.heads + h) * n.queries + i0, length);
      queries = scaled.from(b, h, i0);
      if (through_value)
        grad_out = rows_of<T>(p.grad_out.data, p.grad_out.strides, b, h, i0, length, columns, w.streamed_value);
      careful = suspects.queries && not_finite(queries, length, n.dim);
      careful_value = suspects.grad_out && not_finite(grad_out, length, columns);
      return true;
    };
    for_each_tile(own, w.sight, h, {0, n.queries}, prepare, [&](const TileAt& at) {
      gradient_tile<T>(p, at, queries, grad_out, with_value, w);
      combine(queries.from(at.skip), at.n, n.dim, w.s.data(), w.result.data() + at.group * size, careful);
      if (with_value)
        combine(grad_out.from(at.skip), at.n, columns, w.probability.data(),
                w.result_value.data() + at.group * value_size, careful_value);
    });
    if (with_value && (h + 1) % p.value.group == 0) {
      const int64_t heads = n.heads / p.value.group;
      T* const out = static_cast<T*>(p.grad_value) + ((b * heads + h / p.value.group) * n.keys + own.first) * columns;
      for (int64_t g = 0; g < own.groups(); ++g)
        unpack(w.result_value.data() + g * value_size, own.rows_in(g), columns, R(1), out + g * own.lanes * columns);
    }
  }
  T* const out = static_cast<T*>(p.grad_key) + ((b * n.key_heads + hk) * n.keys + own.first) * n.dim;
  for (int64_t g = 0; g < own.groups(); ++g)
    unpack(w.result.data() + g * size, own.rows_in(g), n.dim, R(1), out + g * own.lanes * n.dim);
}

}  // namespace artent::attention

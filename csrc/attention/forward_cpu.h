// Row statistics, and A·value beside them, of one block of queries on the CPU: one pass over the keys. docs/math.md §4.
#pragma once

#include "logits_cpu.h"
#include "online_state.h"

namespace artent::attention {

// The running states of a group's rows, lane by lane. Sums over kFold streamed rows are the accumulator's, sums of
// those double: beside a dominant key the others are small, and a long sum in float would round each of them.
constexpr int64_t kFold = 42;

template <typename R>
struct OnlineLanes {
  R m[kMaxGroupRows];
  double L[kMaxGroupRows], t[kMaxGroupRows], L2[kMaxGroupRows];

  OnlineLanes() {
    std::fill(m, m + kMaxGroupRows, kHidden<R>);
    for (double* sum : {L, t, L2}) std::fill(sum, sum + kMaxGroupRows, 0.0);
  }
  OnlineState<double> at(int64_t lane) const { return {m[lane], L[lane], t[lane], L2[lane]}; }

  // The sums of a lane, relative to a larger maximum; returns the factor that they took.
  double raise(int64_t lane, R top) {
    OnlineState<double> state = at(lane);
    const double before = state.L;
    state.shift_to(top);
    m[lane] = top;
    L[lane] = state.L;
    t[lane] = state.t;
    L2[lane] = state.L2;
    return before == 0 ? 0 : state.L / before;
  }
};

// A tile of n×lanes logits, streamed into the states. With columns > 0 the tile becomes e^{s−m} and the result
// (columns × lanes) follows the maximum.
template <typename R>
struct OnlineTile {
  R* s;
  int64_t n;
  OnlineLanes<R>* state;
  R* result;
  int64_t columns;
};

template <int Bytes, typename R>
ARTENT_INLINE void raise_maximum(const OnlineTile<R>& a, const R* top) {
  using S = Simd<R, Bytes>;
  R alpha[2 * S::lanes];
  for (int64_t lane = 0; lane < 2 * S::lanes; ++lane)
    alpha[lane] = top[lane] == a.state->m[lane] ? R(1) : R(a.state->raise(lane, top[lane]));
  for (int64_t v = 0; v < 2 && a.columns > 0; ++v) {
    const auto factor = S::load(alpha + v * S::lanes);
    for (int64_t c = 0; c < a.columns; ++c) {
      R* const at = a.result + (2 * c + v) * S::lanes;
      S::store(at, factor * S::load(at));
    }
  }
}

// kRows rows of the tile at once, both vectors of each.
template <int Bytes, bool kKeep, int kRows, typename R, typename V>
ARTENT_INLINE void add_rows(R* at, const V (&m)[2], V (&L)[2], V (&t)[2], V (&L2)[2]) {
  using S = Simd<R, Bytes>;
  V x[2 * kRows], e[2 * kRows];
  for (int i = 0; i < 2 * kRows; ++i)
    x[i] = S::clamp_exponent((S::load(at + i * S::lanes) - m[i % 2]) * R(kLog2e));  // finite: 0·x is 0
  S::exp2_clamped(x, e);
  for (int v = 0; v < 2; ++v) {
    V sum = e[v], product = e[v] * x[v], square = e[v] * e[v];
    if (kRows == 2) {  // in pairs: half the chain, half the rounding
      sum += e[v + 2];
      product += e[v + 2] * x[v + 2];
      square += e[v + 2] * e[v + 2];
    }
    L[v] += sum;
    t[v] += product;
    L2[v] += square;
  }
  for (int i = 0; i < 2 * kRows && kKeep; ++i) S::store(at + i * S::lanes, e[i]);
}

template <int Bytes, bool kKeep, typename R>
ARTENT_INLINE void add_exponentials(const OnlineTile<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  V m[2];
  for (int v = 0; v < 2; ++v) {
    m[v] = S::load(a.state->m + v * S::lanes);
    m[v] = (m[v] == S::splat(kHidden<R>)) ? S::splat(0) : m[v];  // nothing seen yet: s − m is −∞, not NaN
  }
  for (int64_t r = 0; r < a.n;) {
    const int64_t end = std::min(a.n, r + kFold);
    V L[2] = {}, t[2] = {}, L2[2] = {};
    for (; r + 2 <= end; r += 2) add_rows<Bytes, kKeep, 2>(a.s + 2 * r * S::lanes, m, L, t, L2);
    for (; r < end; ++r) add_rows<Bytes, kKeep, 1>(a.s + 2 * r * S::lanes, m, L, t, L2);
    for (int v = 0; v < 2; ++v)
      for (int64_t i = 0; i < S::lanes; ++i) {
        a.state->L[v * S::lanes + i] += L[v][i];
        a.state->t[v * S::lanes + i] += kLn2 * double(t[v][i]);
        a.state->L2[v * S::lanes + i] += L2[v][i];
      }
  }
}

template <int Bytes, typename R>
ARTENT_INLINE void update_states(const OnlineTile<R>& a) {
  using S = Simd<R, Bytes>;
  using V = typename S::V;
  V top0 = S::load(a.state->m), top1 = S::load(a.state->m + S::lanes);
  for (int64_t r = 0; r < a.n; ++r) {  // a NaN is passed over here and stays in the sums
    top0 = S::max(S::load(a.s + 2 * r * S::lanes), top0);
    top1 = S::max(S::load(a.s + (2 * r + 1) * S::lanes), top1);
  }
  R top[2 * S::lanes];
  S::store(top, top0);
  S::store(top + S::lanes, top1);
  bool raised = false;
  for (int64_t lane = 0; lane < 2 * S::lanes; ++lane) raised |= top[lane] != a.state->m[lane];
  if (raised) raise_maximum<Bytes>(a, top);
  if (a.columns > 0) {
    add_exponentials<Bytes, true>(a);
  } else {
    add_exponentials<Bytes, false>(a);
  }
}

ARTENT_ISA_DISPATCH(update_tile, OnlineTile<float>, update_states)
ARTENT_ISA_DISPATCH(update_tile, OnlineTile<double>, update_states)

// What one thread needs; reused from block to block.
template <typename T>
struct ForwardWorkspace {
  using R = Accumulator<T>;
  std::vector<R> packed, keys, values, result;
  std::vector<R> s = std::vector<R>(size_t(kChunk * kMaxGroupRows));
  Sight<R> sight{false};
  std::vector<OnlineLanes<R>> states;
};

// The states of a block's rows, and Σ e^{s−m}·value beside them. A value that is suspect may hold NaN or an infinity.
template <typename T>
void stream_keys(const Logits& a, const Columns& value, bool suspect, const Owned<Accumulator<T>>& own,
                 ForwardWorkspace<T>& w) {
  using R = Accumulator<T>;
  const Shape& n = a.shape;
  const int64_t b = own.b, h = own.h, hk = h / (n.heads / n.key_heads);
  const int64_t columns = value.columns, size = columns * own.lanes;
  pack_block<T>(a.query, a.query_strides, own, h, n.dim, a.scale, w.packed);
  w.states.assign(size_t(own.groups()), OnlineLanes<R>());
  w.result.assign(size_t(own.groups() * size), R(0));
  Rows<R> keys{}, values{};
  bool careful = false;
  const auto prepare = [&](Interval chunk) {
    const int64_t j0 = chunk.start, length = chunk.length();
    keys = rows_of<T>(a.key, a.key_strides, b, hk, j0, length, n.dim, w.keys);
    if (columns == 0) return true;
    values = rows_of<T>(value.data, value.strides, b, h / value.group, j0, length, columns, w.values);
    careful = suspect && not_finite(values, length, columns);
    return true;
  };
  for_each_tile(own, w.sight, h, w.sight.look(a, own), prepare, [&](const TileAt& at) {
    R* const result = w.result.data() + at.group * size;
    logits(a, w.sight, at, keys.from(at.skip), w.packed.data() + at.group * own.lanes * n.dim, w.s.data());
    update_tile(OnlineTile<R>{w.s.data(), at.n, &w.states[at.group], result, columns});
    if (columns > 0) combine(values.from(at.skip), at.n, columns, w.s.data(), result, careful);
  });
}

template <typename T>
void forward_block(const Forward& p, bool suspect, int64_t b, int64_t h, int64_t block, ForwardWorkspace<T>& w) {
  using R = Accumulator<T>;
  const Shape& n = p.a.shape;
  const Owned<R> own = owned<R>(b, h, block, n.queries);
  const int64_t columns = p.value.columns, size = columns * own.lanes;
  stream_keys<T>(p.a, p.value, suspect, own, w);
  for (int64_t i = 0; i < own.rows; ++i) {
    const int64_t lane = i % own.lanes, g = i / own.lanes, row = (b * n.heads + h) * n.queries + own.first + i;
    const OnlineState<double> state = w.states[g].at(lane);
    const R lse = R(state.lse());
    static_cast<R*>(p.lse)[row] = lse;
    static_cast<R*>(p.lse_low)[row] = state.lse_beyond(lse);
    static_cast<R*>(p.entropy)[row] = R(state.entropy());
    static_cast<R*>(p.purity)[row] = R(state.purity());
    R* const result = w.result.data() + g * size + lane;
    const R factor = state.empty() ? R(0) : R(1 / state.L);
    for (int64_t c = 0; c < columns; ++c) {  // an empty row's products may hold what hidden values hold
      const R x = state.empty() ? R(0) : factor * result[c * own.lanes];
      narrow(x, static_cast<T*>(p.out)[row * columns + c]);
    }
  }
}

}  // namespace artent::attention

// The lse of every row in two numbers, for probabilities e^{s − lse} that are as good at logits of 10⁴ as at 1.
//
// An lse of 10⁴ in float is off by up to 5·10⁻⁴, and so would be every probability of its row. Where |lse| is large its
// rounding error is found by another pass over the keys; where it is not, that error is below those of the logits.
#pragma once

#include "forward_cpu.h"

namespace artent::attention {

template <typename R>
constexpr R kLargeLse = 32;

// What the rows' lse lacks: `low`, zero unless filled in.
template <typename R>
struct RowLse {
  const R* lse;
  std::vector<R> low;

  RowLse(const void* data, const Shape& n)
      : lse(static_cast<const R*>(data)), low(size_t(n.batch * n.heads * n.queries), R(0)) {}

  bool is_large(int64_t at) const {
    return std::abs(lse[at]) > kLargeLse<R> && std::abs(lse[at]) <= std::numeric_limits<R>::max();
  }

  bool any_large() const {
    for (size_t i = 0; i < low.size(); ++i) {
      if (is_large(int64_t(i))) return true;
    }
    return false;
  }

  // What logits are reduced by for probabilities: lse, and +∞ for an empty row, which makes them zero.
  R subtracted(int64_t at) const { return lse[at] == -std::numeric_limits<R>::infinity() ? -lse[at] : lse[at]; }
};

// Fills in `low` for a block of queries. An lse that is not that of the visible keys (a caller may apply a part of A)
// is taken as it is.
template <typename T>
void refine_block(const Logits& a, int64_t b, int64_t h, int64_t block, RowLse<Accumulator<T>>& rows,
                  ForwardWorkspace<T>& w) {
  using R = Accumulator<T>;
  const Owned<R> own = owned<R>(b, h, block, a.shape.queries);
  const int64_t row0 = (b * a.shape.heads + h) * a.shape.queries + own.first;
  bool any = false;
  for (int64_t i = 0; i < own.rows; ++i) any = any || rows.is_large(row0 + i);
  if (!any) return;
  stream_keys<T>(a, Columns{}, own, w);
  for (int64_t i = 0; i < own.rows; ++i) {
    const OnlineState<double> state = w.states[i / own.lanes].at(i % own.lanes);
    const double lse = rows.lse[row0 + i], low = (state.m - lse) + std::log(state.L);
    const double rounding = double(std::numeric_limits<R>::epsilon()) * std::abs(lse);
    if (rows.is_large(row0 + i) && std::abs(low) <= rounding) rows.low[row0 + i] = R(low);
  }
}

}  // namespace artent::attention

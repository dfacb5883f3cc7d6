// The lse of every row in two numbers, for probabilities e^{s − lse} as exact as those of a softmax.
//
// Rounding an lse of 10 to float puts all probabilities of its row off by 5·10⁻⁷, an lse of 10⁴ by 5·10⁻⁴. So the
// forward keeps what rounding took. Where a caller has the rounded lse alone, the rest is found by another pass over
// the keys if it is large enough to matter.
#pragma once

#include "forward_cpu.h"

namespace artent::attention {

template <typename R>
constexpr R kLargeLse = 32;

template <typename R>
struct RowLse {
  const R* lse;
  const R* low;  // null: `found`, or zero where that is empty
  std::vector<R> found;

  RowLse(const void* lse, const void* low) : lse(static_cast<const R*>(lse)), low(static_cast<const R*>(low)) {}

  bool is_large(int64_t at) const {
    return std::abs(lse[at]) > kLargeLse<R> && std::abs(lse[at]) <= std::numeric_limits<R>::max();
  }

  // Room for a search, if there is anything to search for among `count` rows.
  bool prepare(int64_t count) {
    if (low != nullptr) return false;
    int64_t i = 0;
    while (i < count && !is_large(i)) ++i;
    if (i == count) return false;
    found.assign(size_t(count), R(0));
    return true;
  }

  // What logits are reduced by for probabilities: lse, and +∞ for an empty row, which makes them zero.
  R subtracted(int64_t at) const { return lse[at] == -std::numeric_limits<R>::infinity() ? -lse[at] : lse[at]; }
  R subtracted_low(int64_t at) const { return low != nullptr ? low[at] : found.empty() ? R(0) : found[at]; }
};

// Fills in `found` for a block of queries. An lse that is not that of the visible keys (a caller may apply a part of A)
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
  stream_keys<T>(a, Columns{}, false, own, w);
  for (int64_t i = 0; i < own.rows; ++i) {
    if (!rows.is_large(row0 + i)) continue;
    const R lse = rows.lse[row0 + i], low = w.states[i / own.lanes].at(i % own.lanes).lse_beyond(lse);
    if (std::abs(low) <= std::numeric_limits<R>::epsilon() * std::abs(lse)) rows.found[row0 + i] = low;
  }
}

}  // namespace artent::attention

// What a gradient's weights need of a query row. Device code, no torch.
#pragma once

#include "../common/simt.h"
#include "online_state.h"
#include "product.h"

namespace artent::attention {

// w = p·(offset − g_entropy·ln p + g_purity2·p + dP); offset gathers what does not depend on the key.
template <class Real>
struct RowWeights {
  static constexpr int kFields = 4;
  Real lse, offset, g_entropy, g_purity2;
};

// Of row `at` of the row vectors; zero for an absent one.
template <class Real>
__device__ inline RowWeights<Real> row_weights(const Product& p, int64_t at) {
  const auto load = [&](const void* field) {
    return field == nullptr ? Real(0) : simt::global_load(static_cast<const Real*>(field) + at);
  };
  RowWeights<Real> row{load(p.lse), 0, 0, 0};
  if (!p.gradient) return row;
  row.g_entropy = load(p.grad_entropy);
  row.g_purity2 = 2 * load(p.grad_purity);
  row.offset = load(p.grad_lse) - load(p.delta);
  if (row.g_entropy != 0) row.offset -= row.g_entropy * load(p.entropy);
  if (row.g_purity2 != 0) row.offset -= row.g_purity2 * load(p.purity);
  return row;
}

}  // namespace artent::attention

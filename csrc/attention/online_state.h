// The running state of one softmax row. docs/math.md §4.
//
// With the maximum m of the logits s seen so far:  L = Σ e^{s−m},  t = Σ e^{s−m}(s−m),  L₂ = Σ e^{2(s−m)}.
// t is kept relative to m: Σ e^{s−m}·s would lose as many digits as |m| has.
//
// The empty state {−∞, 0, 0, 0} is neutral: merging it changes nothing, bit for bit. A hidden key is a logit of −∞
// and is never multiplied in (0·∞). A NaN logit makes the row NaN, as softmax does.
#pragma once

#include <cmath>
#include <limits>

#include "../common/host_device.h"

namespace artent::attention {

template <class Real>
inline constexpr Real kHidden = -std::numeric_limits<Real>::infinity();

template <class Real>
struct OnlineState {
  Real m = kHidden<Real>;
  Real L = 0;
  Real t = 0;
  Real L2 = 0;

  // The same sums, relative to m_new >= m.
  ARTENT_HOST_DEVICE void shift_to(Real m_new) {
    if (m_new == m) return;
    if (m != kHidden<Real>) {
      const Real alpha = std::exp(m - m_new);
      // Where nothing survives, select: a mask of the type's lowest number makes (m − m_new)·L infinite.
      t = alpha == 0 ? 0 : alpha * (t + (m - m_new) * L);
      L *= alpha;
      L2 *= alpha * alpha;
    }
    m = m_new;
  }

  // One visible logit, after shift_to a maximum that covers it.
  ARTENT_HOST_DEVICE void add(Real s) {
    if (s == kHidden<Real>) return;
    const Real e = std::exp(s - m);
    if (e == 0) return;  // s − m may be infinite
    L += e;
    t += e * (s - m);
    L2 += e * e;
  }

  // The state of both sets of keys.
  ARTENT_HOST_DEVICE void merge(OnlineState other) {
    const Real m_new = other.m > m ? other.m : m;
    shift_to(m_new);
    other.shift_to(m_new);
    L += other.L;
    t += other.t;
    L2 += other.L2;
  }

  ARTENT_HOST_DEVICE bool empty() const { return L == 0; }
  ARTENT_HOST_DEVICE Real lse() const { return empty() ? kHidden<Real> : m + std::log(L); }
  // What a rounded lse lacks; m − rounded is exact, or nearly.
  template <class Rounded>
  ARTENT_HOST_DEVICE Rounded lse_beyond(Rounded rounded) const {
    const Real low = (m - Real(rounded)) + std::log(L);
    return std::isfinite(low) ? Rounded(low) : Rounded(0);
  }
  ARTENT_HOST_DEVICE Real entropy() const { return empty() ? Real(0) : std::log(L) - t / L; }  // nats
  ARTENT_HOST_DEVICE Real purity() const { return empty() ? Real(0) : L2 / (L * L); }
};

}  // namespace artent::attention

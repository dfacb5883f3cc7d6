// The type that sums: float, or double for double input.
#pragma once

namespace artent {

template <class Element>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class Element>
using Accumulator = typename AccumulatorOf<Element>::type;

}  // namespace artent

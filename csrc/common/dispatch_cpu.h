// From a tensor's dtype to the element type that the CPU kernels read.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../common/half.h"

namespace artent {

template <typename F>
void dispatch(torch::headeronly::ScalarType type, const char* op, const F& f) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Float16{});
    default:
      STD_TORCH_CHECK(false, op, ": unsupported dtype ", torch::headeronly::toString(type));
  }
}

}  // namespace artent

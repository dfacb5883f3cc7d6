// From a tensor's dtype to the element type that kernels read; the half types are the CPU's or CUDA's own.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace artent {

template <typename Half, typename BFloat, typename F>
void dispatch(torch::headeronly::ScalarType type, const char* op, const F& f) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat{});
    default:
      STD_TORCH_CHECK(false, op, ": unsupported dtype ", torch::headeronly::toString(type));
  }
}

}  // namespace artent

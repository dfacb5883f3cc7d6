// From a tensor's dtype to the element type that the CUDA kernels read.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/tensor.h>

namespace artent {

template <class F>
void dispatch_cuda(torch::headeronly::ScalarType type, const char* op, const F& f) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": unsupported dtype ", torch::headeronly::toString(type));
  }
}

}  // namespace artent

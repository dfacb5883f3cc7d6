// Launching a kernel from tensors: the tensor's device, the current stream, the launch checked.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>

namespace artent {

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute, int device, const char* name) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), name);
  return value;
}

// Runs kernel(params) on the current stream of the current device; a launch without blocks is no launch.
template <class Params>
void launch_cuda(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, const Params& params,
                 int device, const char* name) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), name, ": the input needs ", blocks,
                  " blocks, more than one launch has; split the batch");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  // Above 48 KiB a kernel has to ask for its shared memory.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  kernel<<<unsigned(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace artent

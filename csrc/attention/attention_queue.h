// Launches attention's kernels on the current CUDA stream. A file for each dtype instantiates the templates below, so
// that they compile side by side.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../common/launch_cuda.h"
#include "attention_args.h"
#include "launch.h"

namespace artent::attention {

class CudaQueue {
 public:
  // `like`: a tensor of the device that workspaces come from.
  CudaQueue(const Tensor& like, const char* name)
      : like_(like),
        name_(name),
        multiprocessors_(device_attribute(cudaDevAttrMultiProcessorCount, like.get_device(), name)),
        shared_limit_(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, like.get_device(), name)) {}

  int multiprocessors() const { return multiprocessors_; }
  int shared_limit() const { return shared_limit_; }  // bytes a block

  // Lives until the queue does; the allocator reuses it in the order of the stream.
  float* workspace(int64_t floats) {
    workspaces_.push_back(torch::stable::new_empty(like_, {&floats, 1}, ScalarType::Float));
    return static_cast<float*>(workspaces_.back().mutable_data_ptr());
  }

  template <class Params>
  void launch(void (*kernel)(Params), const Launch& launch, const Params& params) {
    launch_cuda(kernel, launch.blocks, launch.threads, launch.shared_bytes, params, like_.get_device(), name_);
  }

 private:
  Tensor like_;
  const char* name_;
  int multiprocessors_, shared_limit_;
  std::vector<Tensor> workspaces_;
};

template <class Element, class Queue>
void run_forward(Queue& queue, const Forward& p);
template <class Element, class Queue>
void run_apply(Queue& queue, const Apply& p);
template <class Element, class Queue>
void run_backward(Queue& queue, const Backward& p);

#define ARTENT_INSTANTIATE_ATTENTION(Element)                                \
  template void run_forward<Element, CudaQueue>(CudaQueue&, const Forward&); \
  template void run_apply<Element, CudaQueue>(CudaQueue&, const Apply&);     \
  template void run_backward<Element, CudaQueue>(CudaQueue&, const Backward&);

}  // namespace artent::attention

// The kernels of csrc/attention, launched on the simulated machine as attention_run.cuh has it. Called from Python by
// ctypes; one dtype a library, so that a test compiles what it runs.
#include "attention/attention_run.cuh"

namespace {

using namespace artent::attention;
using Element = ARTENT_ELEMENT;

struct Queue {
  int count;  // multiprocessors: many of them make blocks share tiles
  uint64_t seed;
  std::vector<std::unique_ptr<float[]>> workspaces = {};

  int multiprocessors() const { return count; }
  int shared_limit() const { return 163 * 1024; }
  float* workspace(int64_t floats) {
    workspaces.push_back(std::make_unique<float[]>(floats));
    float* data = workspaces.back().get();
    artent::simt::global_memory.add("workspace", data, sizeof(float) * floats, artent::simt::Use::scratch);
    return data;
  }
  template <class Params>
  void launch(void (*kernel)(Params), const Launch& launch, const Params& params) {
    if (launch.blocks == 0) return;
    artent::simt::launch(launch.blocks, launch.threads, launch.shared_bytes, seed, [&] { kernel(params); });
  }
};

template <class Params>
const char* run(void (*f)(Queue&, const Params&), const Params* p, int multiprocessors, uint64_t seed) {
  return artent::simt::report([&] {
    Queue queue{multiprocessors, seed};
    f(queue, *p);
  });
}

}  // namespace

extern "C" {

const char* attention_forward(const Forward* p, int multiprocessors, uint64_t seed) {
  return run(run_forward<Element, Queue>, p, multiprocessors, seed);
}
const char* attention_apply(const Apply* p, int multiprocessors, uint64_t seed) {
  return run(run_apply<Element, Queue>, p, multiprocessors, seed);
}
const char* attention_backward(const Backward* p, int multiprocessors, uint64_t seed) {
  return run(run_backward<Element, Queue>, p, multiprocessors, seed);
}

int sizeof_forward() {
  return sizeof(Forward);
}
int sizeof_apply() {
  return sizeof(Apply);
}
int sizeof_backward() {
  return sizeof(Backward);
}
}

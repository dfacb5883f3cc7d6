// The kernels of csrc/attention/stats_kernel.cuh, launched on the simulated machine. Called from Python by ctypes.
#include "attention/stats_kernel.cuh"

namespace {

using namespace artent::attention;

template <class Element, class Params>
void run(const Launch& launch, void (*kernel)(Params), const Params& params, uint64_t seed) {
  artent::simt::launch(launch.blocks, launch.threads, launch.shared_bytes, seed, [&] { kernel(params); });
}

template <class F>
const char* with_dtype(const std::string& dtype, const F& f) {
  return artent::simt::report([&] {
    if (dtype == "float32") return f(float{});
    if (dtype == "float64") return f(double{});
    if (dtype == "float16") return f(__half(0));
    if (dtype == "bfloat16") return f(__nv_bfloat16(0));
    artent::simt::fail("no such dtype: ", dtype);
  });
}

}  // namespace

extern "C" {

const char* attention_stats(const char* dtype, const StatsForward* p, uint64_t seed) {
  return with_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    run<Element>(forward_launch<Element>(p->shape), stats_forward_kernel<Element>, *p, seed);
  });
}

const char* attention_stats_backward(const char* dtype, const StatsBackward* p, uint64_t seed) {
  return with_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    run<Element>(backward_launch<Element, false>(p->shape), stats_backward_kernel<Element, false>, *p, seed);
    run<Element>(backward_launch<Element, true>(p->shape), stats_backward_kernel<Element, true>, *p, seed);
  });
}

int sizeof_stats_forward() {
  return sizeof(StatsForward);
}
int sizeof_stats_backward() {
  return sizeof(StatsBackward);
}
}

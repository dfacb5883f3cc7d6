// The kernels of csrc/rsvd, launched on the simulated machine. Called from Python by ctypes.
#include "rsvd/parts.cuh"
#include "rsvd/small.cuh"

namespace {

using namespace artent::rsvd;

template <class Params>
void run(void (*kernel)(Params), const Launch& launch, const Params& params, uint64_t seed) {
  artent::simt::launch(launch.blocks, launch.threads, launch.shared_bytes, seed, [&] { kernel(params); });
}

template <class F>
const char* with_real(const std::string& dtype, const F& f) {
  return artent::simt::report([&] {
    if (dtype == "float32") return f(float{});
    if (dtype == "float64") return f(double{});
    artent::simt::fail("no such dtype: ", dtype);
  });
}

template <class F>
const char* with_element(const std::string& dtype, const F& f) {
  if (dtype == "float16") return artent::simt::report([&] { f(__half(0)); });
  if (dtype == "bfloat16") return artent::simt::report([&] { f(__nv_bfloat16(0)); });
  return with_real(dtype, f);
}

}  // namespace

extern "C" {

const char* rsvd_small(const char* dtype, const SmallParams* p, uint64_t seed) {
  return with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    if (!fits_small<Element>(p->shape)) artent::simt::fail("does not fit one block");
    run(rsvd_small_kernel<Element>, small_launch<Element>(p->shape), *p, seed);
  });
}

int64_t rsvd_small_panels(const SmallShape* shape) {
  return small_panels(*shape);
}

// Threads and bytes of shared memory of a launch.
void rsvd_small_plan(const SmallShape* shape, bool is_double, int* threads, int* bytes) {
  const Launch launch = is_double ? small_launch<double>(*shape) : small_launch<float>(*shape);
  *threads = launch.threads, *bytes = launch.shared_bytes;
}

const char* rsvd_sketch(const char* dtype, const SketchParams* p, uint64_t seed) {
  return with_real(dtype, [&](auto real) { run(rsvd_sketch_kernel<decltype(real)>, sketch_launch(*p), *p, seed); });
}

int64_t rsvd_chunks(int64_t m) {
  return divide_up(m, chunk_rows(m));
}
int rsvd_triangle_size(int q) {
  return triangle_size(q);
}
bool rsvd_factor_in_shared(int q) {
  return factor_in_shared(q);
}

const char* rsvd_orthonormalise(const char* dtype, const QrParams* params, int rounds, uint64_t seed) {
  return with_real(dtype, [&](auto real) {
    using Real = decltype(real);
    QrParams p = *params;
    const int last = rounds == 0 ? kMaxRounds : rounds;
    for (p.round = 0; p.round < last; ++p.round) {
      run(rsvd_gram_kernel<Real>, gram_launch(p), p, seed);
      run(rsvd_factor_kernel<Real>, factor_launch(p), p, seed + 1);
      run(rsvd_substitute_kernel<Real>, substitute_launch<Real>(p), p, seed + 2);
    }
  });
}

bool rsvd_jacobi_in_shared(int q) {
  return jacobi_in_shared(q);
}
int rsvd_jacobi_square(int q) {
  return jacobi_square(q);
}

const char* rsvd_jacobi(const JacobiParams* p, uint64_t seed) {
  return artent::simt::report([&] { run(rsvd_jacobi_kernel, jacobi_launch(*p), *p, seed); });
}

int64_t rsvd_residual_tiles(int64_t m, int64_t n) {
  return residual_tiles(m, n);
}

const char* rsvd_residual(const char* dtype, const ResidualParams* p, uint64_t seed) {
  return with_element(dtype, [&](auto element) {
    run(rsvd_residual_kernel<decltype(element)>, residual_launch(*p), *p, seed);
    run(rsvd_residual_sum_kernel, Launch{p->batch, kWarpLanes, 0}, *p, seed + 1);
  });
}

int sizeof_rsvd(int which) {
  const size_t sizes[] = {sizeof(SmallParams), sizeof(SketchParams), sizeof(QrParams), sizeof(JacobiParams),
                          sizeof(ResidualParams)};
  return int(sizes[which]);
}
}

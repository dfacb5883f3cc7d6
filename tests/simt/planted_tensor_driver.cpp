// Asynchronous copies and matrix fragments, sound and with one mistake each. `in` has 256 floats, `out` 64 or 256.
#include "common/simt.h"

namespace {

using namespace artent::simt;

constexpr int kThreads = 64, kPitch = 3;

int self() {
  return int(threadIdx.x);
}
int neighbour() {
  return (self() + 1) % kThreads;
}

struct Kernel {
  const char* name;
  void (*run)(const float* in, float* out);
};

// Copies its own four floats, reads another thread's first.
template <class Between>
void pass_on(const float* in, float* out, int from, const Between& between) {
  SharedArena arena;
  const SharedPanel panel = arena.panel(kThreads, kPitch);
  panel.copy_async(self(), 1, in + 4 * self(), 16);
  between();
  global_store(out + self(), bits_float(panel.word(from, 4)));
}

const Kernel kCopies[] = {
    {"sound",
     [](const float* in, float* out) {
       pass_on(in, out, neighbour(), [] {
         copy_commit();
         copy_wait<0>();
         __syncthreads();
       });
     }},
    {"sound, two groups",
     [](const float* in, float* out) {
       SharedArena arena;
       const SharedPanel panel = arena.panel(kThreads, kPitch);
       panel.copy_async(self(), 0, in + 4 * self(), 8);  // the rest becomes zero
       copy_commit();
       panel.copy_async(self(), 2, in, 0);
       copy_commit();
       copy_wait<1>();
       __syncthreads();
       float sum = 0;
       for (int w = 0; w < 4; ++w) sum += bits_float(panel.word(neighbour(), w));
       copy_wait<0>();
       global_store(out + self(), sum + bits_float(panel.word(self(), 8)));
     }},
    {"no wait",
     [](const float* in, float* out) {
       pass_on(in, out, self(), [] {
         copy_commit();
         __syncthreads();
       });
     }},
    {"no commit",
     [](const float* in, float* out) {
       pass_on(in, out, self(), [] {
         copy_wait<0>();
         __syncthreads();
       });
     }},
    {"a group too few",
     [](const float* in, float* out) {
       pass_on(in, out, self(), [] {
         copy_commit();
         copy_wait<1>();
         __syncthreads();
       });
     }},
    {"no barrier",
     [](const float* in, float* out) {
       pass_on(in, out, neighbour(), [] {
         copy_commit();
         copy_wait<0>();
       });
     }},
    {"waited for after the barrier",
     [](const float* in, float* out) {
       pass_on(in, out, neighbour(), [] {
         copy_commit();
         __syncthreads();
         copy_wait<0>();
       });
     }},
    {"copied over what is being read",
     [](const float* in, float* out) {
       pass_on(in, out, neighbour(), [] {
         copy_commit();
         copy_wait<0>();
         __syncthreads();
       });
       SharedArena arena;
       arena.panel(kThreads, kPitch).copy_async(self(), 1, in, 16);
     }},
    {"stored under a copy",
     [](const float* in, float*) {
       SharedArena arena;
       const SharedPanel panel = arena.panel(kThreads, kPitch);
       panel.copy_async(self(), 0, in, 16);
       panel.store_word(self(), 3, 0);
     }},
    {"misaligned",
     [](const float* in, float*) {
       SharedArena arena;
       arena.panel(kThreads, kPitch).copy_async(self(), 0, in + 2, 16);
     }},
    {"past the end",
     [](const float* in, float*) {
       SharedArena arena;
       arena.panel(kThreads, kPitch).copy_async(self(), 0, in + 4 * self() + 4, 16);
     }},
    {"past the panel",
     [](const float* in, float*) {
       SharedArena arena;
       arena.panel(kThreads, kPitch).copy_async(self(), kPitch, in, 16);
     }},
    {"half a warp multiplies",
     [](const float*, float*) {
       float left[4] = {}, right[4] = {};
       const uint32_t a[4] = {}, b[4] = {};
       if (self() % kWarp < 16) mma_pair<Tf32>(left, right, a, b);
     }},
};

// One warp: out (16, 16) = A Bᵀ with A (16, k), B (16, k), or A B with B (k, 16) when transposed; k words of eight a
// row.
template <class T>
void product(const uint32_t* a, const uint32_t* b, float* out, bool transposed, const std::string& fault) {
  SharedArena arena;
  const SharedPanel left = arena.panel(16, kPitch), right = arena.panel(16, kPitch);
  for (int n = self(); n < 16 * 8; n += kWarp) {
    left.store_word(n / 8, n % 8, global_load(a + n));
    right.store_word(n / 8, n % 8, global_load(b + n));
  }
  __syncthreads();
  const int lane = self();
  uint32_t x[4], y[4];
  left.matrices(lane % 16, lane / 16, x);
  if (transposed)
    right.matrices_transposed(lane % 16, lane / 16, y);
  else
    right.matrices(lane % 8 + lane / 16 * 8, lane / 8 % 2, y);
  if (fault == "rows for columns") std::swap(x[1], x[2]);
  if (fault == "the other half") std::swap(y[0], y[1]);
  float c[2][4] = {};
  mma_pair<T>(c[0], c[1], x, y);
  for (int side = 0; side < 2; ++side)
    for (int e = 0; e < 4; ++e)
      global_store(out + (lane / 4 + e / 2 * 8) * 16 + side * 8 + 2 * (lane % 4) + e % 2, c[side][e]);
}

}  // namespace

extern "C" {

const char* planted_copy(const char* name, const float* in, float* out, uint64_t seed) {
  return report([&] {
    for (const Kernel& kernel : kCopies)
      if (kernel.name == std::string(name))
        return launch(1, kThreads, kThreads * kPitch * 16, seed, [&] { kernel.run(in, out); });
    fail("no such kernel: ", name);
  });
}

const char* planted_product(const char* type, const uint32_t* a, const uint32_t* b, float* out, bool transposed,
                            const char* fault) {
  return report([&] {
    const std::string name = type;
    launch(1, kWarp, 2 * 16 * kPitch * 16, 0, [&] {
      if (name == "float16") return product<__half>(a, b, out, transposed, fault);
      if (name == "bfloat16") return product<__nv_bfloat16>(a, b, out, transposed, fault);
      product<Tf32>(a, b, out, transposed, fault);
    });
  });
}
}

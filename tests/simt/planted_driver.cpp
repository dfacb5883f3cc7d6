// Small kernels with one mistake each, and their sound twins: the machine has to tell them apart.
// Each is run by two warps; `in` has 64 elements, `out` too. Where the name says scratch, that is what `out` is.
#include "common/simt.h"

namespace {

using namespace artent::simt;

constexpr int kThreads = 64;
using Row = SharedTile<float, 1, kThreads>;

int self() {
  return int(threadIdx.x);
}
int lane() {
  return self() % kWarp;
}
int neighbour() {
  return (self() + 1) % kThreads;
}
int warp_neighbour() {
  return self() / kWarp * kWarp + (lane() + 1) % kWarp;
}

struct Kernel {
  const char* name;
  void (*run)(const float* in, float* out);
};

// Writes its own element, reads another thread's.
template <class Between>
void pass_on(const float* in, float* out, int from, const Between& between) {
  SharedArena arena;
  const auto row = arena.take<Row>();
  row.store(0, self(), global_load(in + self()));
  between();
  global_store(out + self(), row.load(0, from));
}

const Kernel kKernels[] = {
    {"sound", [](const float* in, float* out) { pass_on(in, out, neighbour(), [] { __syncthreads(); }); }},
    {"sound in a warp", [](const float* in, float* out) { pass_on(in, out, warp_neighbour(), [] { __syncwarp(); }); }},
    {"sound shuffles",
     [](const float* in, float* out) {
       const float x = global_load(in + self());
       const float up = __shfl_sync(0xffffffffu, x, (lane() + 1) % kWarp);
       const float swapped = __shfl_xor_sync(0xffffffffu, x, 16), down = __shfl_down_sync(0xffffffffu, x, 1);
       float ours = 0;  // half a warp on its own
       if (lane() < 16) ours = __shfl_sync(0x0000ffffu, x, 3);
       global_store(out + self(), up + 100 * swapped + 10000 * down + 1000000 * ours);
     }},
    {"any",
     [](const float* in, float* out) {
       const int any = __syncthreads_or(global_load(in + self()) == 40.0f);
       const int none = __syncthreads_or(global_load(in + self()) == 400.0f);
       global_store(out + self(), float(any + 2 * none));
     }},
    {"missing barrier", [](const float* in, float* out) { pass_on(in, out, neighbour(), [] {}); }},
    {"missing barrier in a warp", [](const float* in, float* out) { pass_on(in, out, warp_neighbour(), [] {}); }},
    {"warp barrier across warps",
     [](const float* in, float* out) { pass_on(in, out, neighbour(), [] { __syncwarp(); }); }},
    {"shuffle as a barrier",
     [](const float* in, float* out) {
       pass_on(in, out, warp_neighbour(), [] { __shfl_sync(0xffffffffu, 0.0f, 0); });
     }},
    {"overwritten before read",
     [](const float*, float* out) {
       SharedArena arena;
       const auto row = arena.take<Row>();
       row.store(0, self(), 1.0f);
       __syncthreads();
       global_store(out + self(), row.load(0, neighbour()));
       row.store(0, self(), 2.0f);
     }},
    {"two writers",
     [](const float*, float*) {
       SharedArena arena;
       arena.take<Row>().store(0, self() / 2, 1.0f);
     }},
    {"uninitialised",
     [](const float*, float* out) {
       SharedArena arena;
       const auto row = arena.take<Row>();
       if (self() != 5) row.store(0, self(), 1.0f);
       __syncthreads();
       global_store(out + self(), row.load(0, self()));
     }},
    {"returned before the barrier",
     [](const float*, float*) {
       if (self() == 7) return;
       __syncthreads();
     }},
    {"two barriers",
     [](const float*, float*) {
       if (self() < 32)
         __syncthreads();
       else
         __syncthreads();
     }},
    {"lane left out",
     [](const float*, float*) {
       if (lane() != 9) __syncwarp();
     }},
    {"reads a lane outside the mask",
     [](const float*, float*) {
       if (lane() < 16) __shfl_sync(0x0000ffffu, 1.0f, 20);
     }},
    {"reads past the end",
     [](const float* in, float* out) { global_store(out + self(), global_load(in + self() + 1)); }},
    {"writes past the end", [](const float*, float* out) { global_store(out + self() + 1, 1.0f); }},
    {"reads before the start",
     [](const float* in, float* out) { global_store(out + self(), global_load(in + self() - 1)); }},
    {"writes its input", [](const float* in, float*) { global_store(const_cast<float*>(in) + self(), 1.0f); }},
    {"reads its output", [](const float*, float* out) { global_store(out + self(), global_load(out + self())); }},
    {"two owners", [](const float*, float* out) { global_store(out + self() / 2, 1.0f); }},
    {"sound scratch",
     [](const float* in, float* out) {
       const GlobalSpan<float> scratch(out, kThreads);
       scratch.store(self(), global_load(in + self()));
       __syncthreads();
       const float x = scratch.load(neighbour());
       __syncthreads();
       scratch.store(self(), x);
     }},
    {"scratch without a barrier",
     [](const float* in, float* out) {
       global_store(out + self(), global_load(in + self()));
       global_store(out + self(), global_load(out + neighbour()));
     }},
    {"scratch read before it is written",
     [](const float*, float* out) {
       if (self() != 9) global_store(out + self(), 1.0f);
       __syncthreads();
       global_store(out + self(), global_load(out + self()));
     }},
    {"scratch of another block",
     [](const float*, float* out) {
       if (self() / 32 == int(blockIdx.x)) global_store(out + self(), 1.0f);
       __syncthreads();
       if (blockIdx.x == 1 - self() / 32) global_store(out + self(), 2.0f);
     }},
    {"past the scratch span",
     [](const float*, float* out) { GlobalSpan<float>(out, kThreads - 1).store(self(), 1.0f); }},
    {"past the span",
     [](const float*, float*) {
       SharedArena arena;
       arena.span<float>(kThreads - 1).store(self(), 1.0f);
     }},
    {"misaligned vector of a span",
     [](const float*, float* out) {
       SharedArena arena;
       const auto span = arena.span<float>(kThreads);
       span.store(self(), 1.0f);
       __syncthreads();
       global_store(out + self(), span.from(1).vec4(self() / 4 * 4 % 60).x[0]);
     }},
    {"laid over what is in use",
     [](const float* in, float* out) {
       SharedArena arena, phase = arena;
       const auto row = arena.span<float>(kThreads), other = phase.span<float>(kThreads);
       row.store(self(), global_load(in + self()));
       __syncthreads();
       const float x = row.load(neighbour());
       other.store(self(), x);
       global_store(out + self(), x);
     }},
    {"misaligned global",
     [](const float* in, float* out) {
       const auto* shifted = reinterpret_cast<const float*>(reinterpret_cast<const char*>(in) + 2);
       global_store(out + self(), self() < 63 ? global_load(shifted + self()) : 0.0f);
     }},
    {"misaligned vector",
     [](const float*, float* out) {
       SharedArena arena;
       const auto row = arena.take<Row>();
       row.store(0, self(), 1.0f);
       __syncthreads();
       global_store(out + self(), row.vec4(0, self() % 32).x[0]);
     }},
    {"past the tile",
     [](const float*, float*) {
       SharedArena arena;
       arena.take<Row>().store(0, self() + 1, 1.0f);
     }},
    {"more shared memory than launched",
     [](const float*, float*) {
       SharedArena arena;
       arena.take<Row>();
       arena.take<Row>();
     }},
};

}  // namespace

extern "C" const char* planted(const char* name, const float* in, float* out, uint64_t seed) {
  return report([&] {
    for (const Kernel& kernel : kKernels)
      if (kernel.name == std::string(name))
        return launch(kernel.name == std::string("scratch of another block") ? 2 : 1, kThreads, Row::kBytes, seed,
                      [&] { kernel.run(in, out); });
    fail("no such kernel: ", name);
  });
}

// Instruction sets of the CPU kernels, chosen at run time.
//
// A kernel body is an always-inline function template. ARTENT_ISA_DISPATCH gives it one entry point an instruction
// set, each compiled for that set by a target attribute and with internal linkage, so that no AVX instruction can
// leak into code that runs on a machine without it (as -march or a shared inline function would let it).
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#define ARTENT_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define ARTENT_TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
#define ARTENT_TARGET_avx512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")))
#endif

namespace artent {

enum class Isa { portable, avx2, avx512 };

inline const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

// The best set this machine has; the environment variable ARTENT_ISA lowers it (never raises it), for tests.
inline Isa detect_isa() {
  Isa best = Isa::portable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
      best = Isa::avx512;
    }
  }
#endif
  const char* wanted = std::getenv("ARTENT_ISA");
  if (wanted != nullptr) {
    for (Isa isa : {Isa::portable, Isa::avx2}) {
      if (isa < best && std::strcmp(wanted, isa_name(isa)) == 0) return isa;
    }
  }
  return best;
}

inline Isa isa() {
  static const Isa value = detect_isa();
  return value;
}

// Bytes of a vector register: what ARTENT_ISA_DISPATCH gives its bodies.
inline int register_bytes() {
  return isa() == Isa::avx512 ? 64 : isa() == Isa::avx2 ? 32 : 16;
}

}  // namespace artent

// Defines `static void NAME(const ARGS& a)`, which runs BODY<bytes of a vector register>(a) compiled for the machine it
// finds itself on.
#if defined(__x86_64__)
#define ARTENT_ISA_DISPATCH(NAME, ARGS, BODY)                     \
  ARTENT_TARGET_avx2 static void NAME##_avx2(const ARGS& a) {     \
    BODY<32>(a);                                                  \
  }                                                               \
  ARTENT_TARGET_avx512 static void NAME##_avx512(const ARGS& a) { \
    BODY<64>(a);                                                  \
  }                                                               \
  static void NAME##_portable(const ARGS& a) {                    \
    BODY<16>(a);                                                  \
  }                                                               \
  static void NAME(const ARGS& a) {                               \
    switch (::artent::isa()) {                                    \
      case ::artent::Isa::avx512:                                 \
        return NAME##_avx512(a);                                  \
      case ::artent::Isa::avx2:                                   \
        return NAME##_avx2(a);                                    \
      default:                                                    \
        return NAME##_portable(a);                                \
    }                                                             \
  }
#else
#define ARTENT_ISA_DISPATCH(NAME, ARGS, BODY) \
  static void NAME(const ARGS& a) {           \
    BODY<16>(a);                              \
  }
#endif

// Marks small functions that both the CPU kernels and the CUDA kernels inline.
#pragma once

#if defined(__CUDACC__)
#define ARTENT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ARTENT_HOST_DEVICE inline __attribute__((always_inline))
#endif

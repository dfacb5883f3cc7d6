// Tensor cores and asynchronous copies as nvcc finds them, in PTX; included by simt.h.
//
// A warp multiplies small matrices whose elements are spread over its lanes ("fragments"). With g = lane / 4 and
// t = lane % 4, in the layouts of the PTX manual (mma.m16n8k16 for 16-bit types, mma.m16n8k8 for tf32), and 16 bytes of
// a row ("a chunk") being 8 or 4 elements:
//   a (16 × two chunks)  a[0] row g, a[1] row g + 8 of the first chunk, a[2], a[3] the same of the second; word t of it
//   b (two chunks × 8)   b[0] word t of column g's first chunk, b[1] of its second
//   c (16 × 8, float)    c[0], c[1] row g, columns 2t and 2t + 1; c[2], c[3] row g + 8
// Here two b's stand side by side: four words for sixteen columns, which is what one ldmatrix.x4 loads.
#pragma once

namespace artent::simt {

__device__ __forceinline__ uint32_t float_bits(float x) {
  return __float_as_uint(x);
}
__device__ __forceinline__ float bits_float(uint32_t x) {
  return __uint_as_float(x);
}

// To nearest, ties away from zero, in float's bits.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// e^x to a few units in the last place, times 1 + |x|: one multiplication and one special-function instruction.
__device__ __forceinline__ float exp_approx(float x) {
  return __expf(x);
}

// Two neighbours of a 16-bit type in one word, the first one low.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  uint32_t word;
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}
__device__ __forceinline__ float half_low(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
}
__device__ __forceinline__ float half_high(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, Tf32>);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// left += a · (first b), right += a · (second b)
template <class T>
__device__ __forceinline__ void mma_pair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
  mma<T>(left, a, b[0], b[1]);
  mma<T>(right, a, b[2], b[3]);
}

// Rows of 16-byte chunks in shared memory, `pitch` chunks apart. An odd pitch keeps eight rows' chunks on different
// banks.
class SharedPanel {
 public:
  __device__ __forceinline__ SharedPanel(unsigned char* bytes, int, int pitch)
      : bytes_(bytes), address_(static_cast<uint32_t>(__cvta_generic_to_shared(bytes))), pitch_(pitch) {}

  // Its rows from `first`, `rows` of them.
  __device__ __forceinline__ SharedPanel from(int first, int rows) const {
    return SharedPanel(bytes_ + first * pitch_ * 16, rows, pitch_);
  }
  __device__ __forceinline__ uint32_t word(int row, int word) const {
    return reinterpret_cast<const uint32_t*>(bytes_)[row * pitch_ * 4 + word];
  }
  __device__ __forceinline__ void store_word(int row, int word, uint32_t value) const {
    reinterpret_cast<uint32_t*>(bytes_)[row * pitch_ * 4 + word] = value;
  }
  // Begins to copy `bytes` ≤ 16 bytes, and zeros to fill the chunk. Both ends lie on 16-byte boundaries.
  __device__ __forceinline__ void copy_async(int row, int chunk, const void* source, int bytes) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at(row, chunk)), "l"(source), "r"(bytes)
                 : "memory");
  }
  // Lanes 8m … 8m + 7 name the chunks of matrix m, whose words 0 … 3 go to the lanes 0 … 3, 4 … 7, … in out[m].
  __device__ __forceinline__ void matrices(int row, int chunk, uint32_t (&out)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at(row, chunk)));
  }
  // The same of 16-bit elements, each matrix transposed.
  __device__ __forceinline__ void matrices_transposed(int row, int chunk, uint32_t (&out)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at(row, chunk)));
  }

 private:
  unsigned char* bytes_;
  uint32_t address_;
  int pitch_;

  __device__ __forceinline__ uint32_t at(int row, int chunk) const {
    return address_ + uint32_t(row * pitch_ + chunk) * 16u;
  }
};

// A thread's copies since its last commit become one group.
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits for all of this thread's groups but the latest kLeft. A barrier makes them visible to the others.
template <int kLeft>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace artent::simt

// SVD of a small triangle by one-sided Jacobi rotations, a thread block a matrix: R = X Σ Wᵀ. Device code, no torch.
//
// The columns of Rᵀ, kept as rows so that lanes read along them, are rotated pairwise until they are orthogonal:
// Rᵀ X = W Σ. Pairs of a round are disjoint and run side by side, each on as many lanes as leave two elements a lane
// up to 64 columns: 8, 16 or 32. Round-robin order, float64.
#pragma once

#include "block.cuh"

namespace artent::rsvd {

// An odd pitch, so that the rows of different pairs do not all begin on one bank.
ARTENT_HOST_DEVICE constexpr int jacobi_pitch(int q) {
  return q | 1;
}
ARTENT_HOST_DEVICE constexpr int pair_lanes(int q) {
  return q <= 16 ? 8 : q <= 32 ? 16 : 32;
}
// Threads that rotate all pairs of a round at once.
ARTENT_HOST_DEVICE constexpr int jacobi_threads(int q) {
  return (q + 1) / 2 * pair_lanes(q);
}

// What the SVD needs besides its two matrices, in shared memory.
struct JacobiSpans {
  simt::SharedSpan<double> sigma, dots, sums;  // (q), (q), kMaxWarps
  simt::SharedSpan<int32_t> order;             // (q): order[r] is the row of the r-th largest singular value

  __device__ JacobiSpans(simt::SharedArena& arena, int q)
      : sigma(arena.span<double>(q)),
        dots(arena.span<double>(q)),
        sums(arena.span<double>(kMaxWarps)),
        order(arena.span<int32_t>(q)) {}
  static constexpr int bytes(int q) {
    return 2 * simt::span_bytes<double>(q) + simt::span_bytes<double>(kMaxWarps) + simt::span_bytes<int32_t>(q);
  }
};

// w: (q×pitch) in: row i is row i of R; out: row order[r] is column r of W. x: out: row order[r] is column r of X.
// spans.sigma is by row, too; 0 where a direction of W had to be made up.
template <class Span>
struct Jacobi {
  Span w, x;
  int q;
  double enough;  // stop after a sweep that met no larger cosine between two columns
  JacobiSpans spans;

  // Needs a barrier before, ends with one. False, in every thread, when R is not finite: then nothing was computed.
  __device__ bool run() const {
    const int pitch = jacobi_pitch(q);
    double largest = 0;
    int bad = 0;
    for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x)) {
      const double value = fabs(w.load(n / q * pitch + n % q));
      largest = value > largest ? value : largest;
      bad |= !(value < HUGE_VAL);
    }
    if (__syncthreads_or(bad)) return false;
    int exponent = 0;
    frexp(block_max(largest, spans.sums), &exponent);
    const PowerOfTwo<double> scale(-exponent);
    for (int n = int(threadIdx.x); n < q * q; n += int(blockDim.x)) {
      const int i = n / q, j = n % q;
      w.store(i * pitch + j, scale(w.load(i * pitch + j)));
      x.store(i * pitch + j, i == j);
    }
    __syncthreads();
    for (int sweep = 0; sweep < kJacobiSweeps; ++sweep)
      if (!__syncthreads_or(rotate_all())) break;
    normalise();
    complete();
    __syncthreads();
    const PowerOfTwo<double> rescale(exponent);
    for (int i = int(threadIdx.x); i < q; i += int(blockDim.x)) spans.sigma.store(i, rescale(spans.sigma.load(i)));
    __syncthreads();
    return true;
  }

 private:
  // One sweep; returns whether a pair of this thread was too far from orthogonal for it to be the last.
  __device__ int rotate_all() const {
    const int pitch = jacobi_pitch(q), lanes = pair_lanes(q), lane = int(threadIdx.x) % lanes;
    const int players = (q + 1) / 2 * 2, pairs = players / 2, groups = int(blockDim.x) / lanes;
    int far = 0;
    for (int round = 0; round < players - 1; ++round) {
      for (int first = 0; first < pairs; first += groups) {  // the same number of times in every thread: shuffles
        // The last player stays, the others move round a circle; an odd player out meets nobody.
        const int pair = first + int(threadIdx.x) / lanes;
        const int one = pair == 0 ? players - 1 : (round + pair) % (players - 1);
        const int two = (round - pair + players - 1) % (players - 1);
        const int i = one < two ? one : two, j = one < two ? two : one;
        const bool plays = pair < pairs && j < q;
        double a = 0, b = 0, g = 0;
        for (int k = lane; plays && k < q; k += lanes) {
          const double left = w.load(i * pitch + k), right = w.load(j * pitch + k);
          a += left * left;
          b += right * right;
          g += left * right;
        }
        for (int n = lanes / 2; n > 0; n /= 2) {
          a += __shfl_xor_sync(kAllLanes, a, n);
          b += __shfl_xor_sync(kAllLanes, b, n);
          g += __shfl_xor_sync(kAllLanes, g, n);
        }
        // A row that has lost its direction (normalise) is noise of noise and would never settle.
        if (!plays || a < kLost * kLost || b < kLost * kLost) continue;
        const double cosine = fabs(g) / sqrt(a * b);
        if (!(cosine > kJacobiTolerance)) continue;
        far |= cosine > enough;
        // tan of the angle that makes them orthogonal: the smaller root of t² + 2ζt − 1, ζ = (b − a)/2g.
        const double zeta = (b - a) / (2 * g);
        const double t = copysign(1 / (fabs(zeta) + sqrt(1 + zeta * zeta)), zeta);
        const double c = 1 / sqrt(1 + t * t), s = t * c;
        for (int k = lane; k < q; k += lanes) {
          turn(w, i * pitch + k, j * pitch + k, c, s);
          turn(x, i * pitch + k, j * pitch + k, c, s);
        }
      }
      __syncthreads();
    }
    return far;
  }

  __device__ __forceinline__ void turn(Span m, int at, int other, double c, double s) const {
    const double left = m.load(at), right = m.load(other);
    m.store(at, left * c - right * s);
    m.store(other, left * s + right * c);
  }

  // Singular values, their order, unit rows of x, and of w where there is a direction. Hundreds of rotations by rounded
  // angles have stretched rows of w and x alike, by some 1e-14. Ends with a barrier.
  __device__ void normalise() const {
    const int pitch = jacobi_pitch(q);
    for (int i = warp_id(); i < q; i += warp_count()) {
      const double norm = sqrt(warp_dot(w, i, i)), stretch = sqrt(warp_dot(x, i, i));
      if (lane_id() == 0) spans.sigma.store(i, norm > kLost ? norm / stretch : 0);
      for (int k = lane_id(); k < q; k += kWarpLanes) {
        w.store(i * pitch + k, norm > kLost ? w.load(i * pitch + k) / norm : 0);
        x.store(i * pitch + k, x.load(i * pitch + k) / stretch);
      }
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < q; i += int(blockDim.x)) {
      const double own = spans.sigma.load(i);
      int rank = 0;
      for (int j = 0; j < q; ++j) rank += spans.sigma.load(j) > own || (spans.sigma.load(j) == own && j < i);
      spans.order.store(rank, i);
    }
    __syncthreads();
  }

  // Rows of w without a direction, the last in order, become orthonormal to all before: each time the unit vector
  // farthest from them, orthogonalised twice.
  __device__ void complete() const {
    const int pitch = jacobi_pitch(q);
    for (int rank = 0; rank < q; ++rank) {
      const int row = spans.order.load(rank);
      if (spans.sigma.load(row) > 0) continue;
      for (int k = int(threadIdx.x); k < q; k += int(blockDim.x)) {
        double covered = 0;
        for (int r = 0; r < rank; ++r) {
          const double value = w.load(spans.order.load(r) * pitch + k);
          covered += value * value;
        }
        spans.dots.store(k, covered);
      }
      __syncthreads();
      int farthest = 0;
      for (int k = 1; k < q; ++k)
        if (spans.dots.load(k) < spans.dots.load(farthest)) farthest = k;
      for (int k = int(threadIdx.x); k < q; k += int(blockDim.x)) w.store(row * pitch + k, k == farthest);
      __syncthreads();
      for (int pass = 0; pass < 2; ++pass) {
        for (int r = warp_id(); r < rank; r += warp_count()) {
          const double dot = warp_dot(w, spans.order.load(r), row);
          if (lane_id() == 0) spans.dots.store(r, dot);
        }
        __syncthreads();
        for (int k = int(threadIdx.x); k < q; k += int(blockDim.x)) {
          double value = w.load(row * pitch + k);
          for (int r = 0; r < rank; ++r) value -= spans.dots.load(r) * w.load(spans.order.load(r) * pitch + k);
          w.store(row * pitch + k, value);
        }
        __syncthreads();
      }
      const double norm = sqrt(warp_dot(w, row, row));
      __syncthreads();
      for (int k = int(threadIdx.x); k < q; k += int(blockDim.x))
        w.store(row * pitch + k, w.load(row * pitch + k) / norm);
      __syncthreads();
    }
  }

  // Row i of m times row j, the same in every lane of the warp.
  __device__ double warp_dot(const Span& m, int i, int j) const {
    const int pitch = jacobi_pitch(q);
    double sum = 0;
    for (int k = lane_id(); k < q; k += kWarpLanes) sum += m.load(i * pitch + k) * m.load(j * pitch + k);
    for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    return sum;
  }
};

}  // namespace artent::rsvd

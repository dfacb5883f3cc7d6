// The matrix as the CPU algorithm reads it: tall, unit stride one way or the other, in the working precision, of a size
// whose squares neither overflow nor vanish. Copied only where it is not so already.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../common/half.h"
#include "../common/vec.h"
#include "orthonormalise_cpu.h"

namespace artent::rsvd {

// A strided matrix of elements T as it was given, and the same read tall.
template <typename T>
struct Given {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;

  Given tall() const { return rows >= cols ? *this : Given{data, cols, rows, col_stride, row_stride}; }
};

template <typename T>
struct Working {
  using type = float;
};
template <>
struct Working<double> {
  using type = double;
};

// Sum of squares and largest absolute value (NaN if any element is) of rows first … last − 1, in float64.
template <typename T>
struct Norm {
  Given<T> a;
  int64_t first, last;
  double* sum;
  double* peak;
};

template <int Bytes, typename T>
ARTENT_INLINE void norm_body(const Norm<T>& p) {
  using R = typename Working<T>::type;
  constexpr int kLanes = 8;
  double total = 0;
  R largest = 0;
  bool finite = true;
  for (int64_t i = p.first; i < p.last; ++i) {
    const T* row = p.a.data + i * p.a.row_stride;
    double sum[kLanes] = {};
    R peak[kLanes] = {};
    int64_t j = 0;
    if (p.a.col_stride == 1) {
      for (; j + kLanes <= p.a.cols; j += kLanes)
        for (int l = 0; l < kLanes; ++l) {
          const R x = widen(row[j + l]);
          sum[l] += double(x) * double(x);
          peak[l] = std::abs(x) > peak[l] ? std::abs(x) : peak[l];
        }
    }
    for (; j < p.a.cols; ++j) {
      const R x = widen(row[j * p.a.col_stride]);
      sum[0] += double(x) * double(x);
      peak[0] = std::abs(x) > peak[0] ? std::abs(x) : peak[0];
    }
    for (int l = 0; l < kLanes; ++l) {
      finite = finite && !(sum[l] != sum[l]);  // the sum keeps the NaN that a maximum may drop
      total += sum[l];
      largest = peak[l] > largest ? peak[l] : largest;
    }
  }
  *p.sum = total;
  *p.peak = finite && largest <= std::numeric_limits<R>::max() ? double(largest) : std::nan("");
}

ARTENT_ISA_DISPATCH(norm, Norm<float>, norm_body)
ARTENT_ISA_DISPATCH(norm, Norm<double>, norm_body)
ARTENT_ISA_DISPATCH(norm, Norm<BFloat16>, norm_body)
ARTENT_ISA_DISPATCH(norm, Norm<Float16>, norm_body)

// Rows first … last − 1 of `out` (row-major, contiguous) = factor · a.
template <typename T>
struct Copy {
  Given<T> a;
  int64_t first, last;
  double factor;
  typename Working<T>::type* out;
};

template <int Bytes, typename T>
ARTENT_INLINE void copy_body(const Copy<T>& p) {
  using R = typename Working<T>::type;
  for (int64_t i = p.first; i < p.last; ++i) {
    const T* row = p.a.data + i * p.a.row_stride;
    R* out = p.out + i * p.a.cols;
    if (p.a.col_stride == 1) {
      for (int64_t j = 0; j < p.a.cols; ++j) out[j] = R(double(widen(row[j])) * p.factor);
    } else {
      for (int64_t j = 0; j < p.a.cols; ++j) out[j] = R(double(widen(row[j * p.a.col_stride])) * p.factor);
    }
  }
}

ARTENT_ISA_DISPATCH(copy, Copy<float>, copy_body)
ARTENT_ISA_DISPATCH(copy, Copy<double>, copy_body)
ARTENT_ISA_DISPATCH(copy, Copy<BFloat16>, copy_body)
ARTENT_ISA_DISPATCH(copy, Copy<Float16>, copy_body)

template <typename R>
struct Source {
  const R* data;
  int64_t m, n, row_stride, col_stride;
  double norm2;  // ‖A‖_F² of what `data` holds; NaN if A holds NaN or Inf
  int exponent;  // A = 2^exponent · data
};

inline const double* direct(const Given<double>& a) {
  return a.data;
}
inline const float* direct(const Given<float>& a) {
  return a.data;
}
template <typename T>
const float* direct(const Given<T>&) {
  return nullptr;
}

// Reads `given` once for its norm; a copy, where one is needed, is kept in `store`.
template <typename T, typename R = typename Working<T>::type>
Source<R> prepare(const Team& team, const Given<T>& given, std::vector<R>& store) {
  // The norm is summed in an order of its own, by the layout rather than by the shape: rows of unit stride.
  const bool across = given.col_stride == 1 || given.row_stride != 1;
  const Given<T> rows =
      across ? given : Given<T>{given.data, given.cols, given.rows, given.col_stride, given.row_stride};
  const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, rows.cols));
  const int64_t chunks = divide_up(rows.rows, chunk);
  std::vector<double> sums(chunks), peaks(chunks);
  const auto measure = [&](const Given<T>& a) {
    team(chunks,
         [&](int64_t c) { norm(Norm<T>{a, c * chunk, std::min(a.rows, (c + 1) * chunk), &sums[c], &peaks[c]}); });
  };
  measure(rows);
  double norm2 = 0, peak = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    norm2 += sums[c];
    peak = peaks[c] > peak || peaks[c] != peaks[c] ? peaks[c] : peak;
  }
  const Given<T> tall = given.tall();
  Source<R> source{direct(tall), tall.rows, tall.cols, tall.row_stride, tall.col_stride, norm2, 0};
  if (peak != peak) {
    source.norm2 = peak;
    return source;
  }
  // Products of up to 2^30 terms and, in float64, their squares stay in range.
  constexpr int limit = std::is_same_v<R, double> ? 400 : 90;
  const int exponent = peak > 0 ? std::ilogb(peak) : 0;
  const bool scaled = exponent > limit || exponent < -limit;
  if (source.data != nullptr && !scaled && (source.row_stride == 1 || source.col_stride == 1)) return source;
  source.exponent = scaled ? exponent : 0;
  const double factor = std::ldexp(1.0, -source.exponent / 2) * std::ldexp(1.0, -source.exponent + source.exponent / 2);
  store.resize(rows.rows * rows.cols);
  team(chunks,
       [&](int64_t c) { copy(Copy<T>{rows, c * chunk, std::min(rows.rows, (c + 1) * chunk), factor, store.data()}); });
  const bool same_way = across == (given.rows >= given.cols);
  source.data = store.data();
  source.row_stride = same_way ? rows.cols : 1;
  source.col_stride = same_way ? 1 : rows.cols;
  if (!scaled) return source;
  const Given<R> copied{store.data(), rows.rows, rows.cols, rows.cols, 1};
  source.norm2 = 0;
  team(chunks,
       [&](int64_t c) { norm(Norm<R>{copied, c * chunk, std::min(rows.rows, (c + 1) * chunk), &sums[c], &peaks[c]}); });
  for (const double s : sums) source.norm2 += s;
  return source;
}

}  // namespace artent::rsvd

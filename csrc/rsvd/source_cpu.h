// The matrix as the CPU algorithm reads it: tall, unit stride one way or the other, in the working precision, of a size
// whose squares neither overflow nor vanish. Copied only where it is not so already.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../common/accumulator.h"
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

// Σ (factor·a)² over rows first … last − 1, in float64.
template <typename T>
struct Norm {
  Given<T> a;
  int64_t first, last;
  double factor;
  double* sum;
};

template <int Bytes, typename T>
ARTENT_INLINE void norm_body(const Norm<T>& p) {
  constexpr int kLanes = 16;  // chains of additions, enough to hide their latency
  double sum[kLanes] = {};
  for (int64_t i = p.first; i < p.last; ++i) {
    const T* row = p.a.data + i * p.a.row_stride;
    int64_t j = 0;
    if (p.a.col_stride == 1) {
      for (; j + kLanes <= p.a.cols; j += kLanes)
        for (int l = 0; l < kLanes; ++l) {
          const double x = double(widen(row[j + l])) * p.factor;
          sum[l] += x * x;
        }
    }
    for (; j < p.a.cols; ++j) {
      const double x = double(widen(row[j * p.a.col_stride])) * p.factor;
      sum[0] += x * x;
    }
  }
  *p.sum = 0;
  for (int l = 0; l < kLanes; ++l) *p.sum += sum[l];
}

ARTENT_ISA_DISPATCH(norm, Norm<float>, norm_body)
ARTENT_ISA_DISPATCH(norm, Norm<double>, norm_body)
ARTENT_ISA_DISPATCH(norm, Norm<BFloat16>, norm_body)
ARTENT_ISA_DISPATCH(norm, Norm<Float16>, norm_body)

// Rows first … last − 1 of `out` (row-major, contiguous) = factor · (finest · a).
template <typename T>
struct Copy {
  Given<T> a;
  int64_t first, last;
  double finest, factor;
  Accumulator<T>* out;
};

template <int Bytes, typename T>
ARTENT_INLINE void copy_body(const Copy<T>& p) {
  using R = Accumulator<T>;
  for (int64_t i = p.first; i < p.last; ++i) {
    const T* row = p.a.data + i * p.a.row_stride;
    R* out = p.out + i * p.a.cols;
    if (p.a.col_stride == 1) {
      for (int64_t j = 0; j < p.a.cols; ++j) out[j] = R(double(widen(row[j])) * p.finest * p.factor);
    } else {
      for (int64_t j = 0; j < p.a.cols; ++j) out[j] = R(double(widen(row[j * p.a.col_stride])) * p.finest * p.factor);
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

// ‖factor·a‖_F² by chunks of rows, which depend on the shape alone.
template <typename T>
double norm2(const Team& team, const Given<T>& a, double factor) {
  const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, a.cols)), chunks = divide_up(a.rows, chunk);
  std::vector<double> sums(chunks);
  team(chunks, [&](int64_t c) { norm(Norm<T>{a, c * chunk, std::min(a.rows, (c + 1) * chunk), factor, &sums[c]}); });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

// The exponent by which A is divided before work: 0 unless its products, or in float64 their squares, could leave the
// range of R. NaN or Inf in A: `norm2` comes back NaN.
template <typename R, typename T>
int scaling(const Team& team, const Given<T>& a, double& squares) {
  constexpr bool is_double = std::is_same_v<R, double>;
  constexpr int limit = is_double ? 400 : 90;
  if (is_double && !(squares > 1e-250 && squares < 1e250)) {  // squares may have overflowed or vanished
    for (const int trial : {600, -600, -1000}) {
      const double scaled = norm2(team, a, std::ldexp(1.0, -trial));
      if (scaled > 1e-250 && scaled < 1e300) return trial + std::ilogb(scaled) / 2;
    }
    if (squares != 0) squares = std::nan("");
    return 0;
  }
  if (!(squares <= std::numeric_limits<double>::max())) squares = std::nan("");
  if (squares != squares || squares == 0) return 0;
  const int exponent = std::ilogb(squares) / 2;
  return exponent > limit || exponent < -limit ? exponent : 0;
}

// Reads `given` once for its norm; a copy, where one is needed, is kept in `store`.
template <typename T, typename R = Accumulator<T>>
Source<R> prepare(const Team& team, const Given<T>& given, std::vector<R>& store) {
  // By the layout rather than by the shape: along the unit stride.
  const bool across = given.col_stride == 1 || given.row_stride != 1;
  const Given<T> rows =
      across ? given : Given<T>{given.data, given.cols, given.rows, given.col_stride, given.row_stride};
  const Given<T> tall = given.tall();
  Source<R> source{direct(tall), tall.rows, tall.cols, tall.row_stride, tall.col_stride, norm2(team, rows, 1.0), 0};
  source.exponent = scaling<R>(team, rows, source.norm2);
  const bool strided = source.row_stride != 1 && source.col_stride != 1;
  if (source.norm2 != source.norm2 || (source.data != nullptr && source.exponent == 0 && !strided)) return source;
  store.resize(rows.rows * rows.cols);
  const int half = source.exponent / 2;  // 2^−exponent itself may be out of range
  const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, rows.cols));
  team(divide_up(rows.rows, chunk), [&](int64_t c) {
    copy(Copy<T>{rows, c * chunk, std::min(rows.rows, (c + 1) * chunk), std::ldexp(1.0, -half),
                 std::ldexp(1.0, half - source.exponent), store.data()});
  });
  const bool same_way = across == (given.rows >= given.cols);
  source.data = store.data();
  source.row_stride = same_way ? rows.cols : 1;
  source.col_stride = same_way ? 1 : rows.cols;
  if (source.exponent != 0) source.norm2 = norm2(team, Given<R>{store.data(), rows.rows, rows.cols, rows.cols, 1}, 1.0);
  return source;
}

}  // namespace artent::rsvd

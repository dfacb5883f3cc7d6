// What the randomized SVD of one matrix is asked for, where its result goes, and the memory it works in.
#pragma once

#include "orthonormalise_cpu.h"

namespace artent::rsvd {

// Triangles up to here are taken apart by Jacobi rotations; wider ones by LAPACK, in blocks.
constexpr int64_t kJacobiWidest = 192;

struct Plan {
  int64_t k, q;  // singular triplets asked for, columns of the sketch
  int power_iters;
  int64_t shorter;  // side of the matrix

  // Does LAPACK have a part in it? And is that the whole of it, the products being as dear as an SVD of the matrix?
  bool library() const { return q > kJacobiWidest; }
  bool whole() const { return library() && 2 * q >= shorter; }
  int64_t sketch() const { return whole() ? 0 : q; }
};

template <typename R>
struct Output {
  R *u, *s, *vh;  // (rows×k), (k), (k×cols), contiguous
  double* residual;
};

template <typename R>
struct Workspace {
  Plan plan;
  QrWorkspace<R> qr;
  std::vector<R> store, sketch, y, z, small, product;
  std::vector<double> w, x, sigma, scratch, left, right;
  std::vector<int32_t> players;

  explicit Workspace(const Plan& p)
      : plan(p),
        qr(p.sketch()),
        small(p.sketch() * qr.ld),
        w((p.sketch() + 4) * qr.ld),
        x((p.sketch() + 4) * qr.ld),
        sigma(p.sketch()),
        scratch(4 * (p.sketch() + 2)),
        players(p.sketch() + 1) {}
};

// Ω (n×ld): normals by (seed, row, column), zeros past q.
template <typename R>
void fill_sketch(const Team& team, uint64_t seed, int64_t n, int64_t q, int64_t ld, R* omega) {
  team(divide_up(n, 64), [&](int64_t task) {
    for (int64_t i = task * 64; i < std::min(n, (task + 1) * 64); i += 4) {
      const int64_t rows = std::min<int64_t>(4, n - i);
      for (int64_t t = 0; t < rows; ++t) std::fill_n(omega + (i + t) * ld, ld, R(0));
      for (int64_t j = 0; j < q; ++j) {
        const Normal4 normals = normal4(seed, 0, uint64_t(i / 4), uint32_t(j));
        for (int64_t t = 0; t < rows; ++t) omega[(i + t) * ld + j] = R(normals.x[t]);
      }
    }
  });
}

}  // namespace artent::rsvd

// Randomized SVD of a batch of matrices (§3): what the CPU and CUDA kernels agree on.
//
// A is taken tall (m ≥ n; a wide one is read transposed). With Ω (n×q) standard normal from the counters
// (seed, stream 0, row, column):
//   Y = AΩ;  Q = orth(Y);  power_iters times: Q = orth(AQ') with Q' = orth(AᵀQ);  B = AᵀQ (n×q);
//   B = Q₂R;  R = X Σ Wᵀ by one-sided Jacobi;  A ≈ (Q W) Σ (Q₂ X)ᵀ, of which the first k columns are returned.
// Between products orth is one round of the clamped CholeskyQR below; the last Q, and Q₂, take rounds until the columns
// are orthonormal to rounding.
//
// A round of clamped CholeskyQR, Y (m×q) → Q, R with Y = QR:
//   G = YᵀY in float64;  D = diag(G)^½;  R̂ = chol(D⁻¹ G D⁻¹) in float64, where a pivot below kPivotFloor is raised to
//   it and the rest of its row is zero;  R = R̂ D;  Q = Y R⁻¹ by forward substitution in the working precision.
// Scaling takes out the grading of the columns (after a product most of their condition number). Where a pivot was
// raised, the column is what is left of it outside the span of those before, too short but a fresh direction: the next
// round scales and finishes it. It eliminates nothing from the columns after it in this round: they hold no more of
// that direction than rounding, and rounding over kPivotFloor would grow from column to column. Where a pivot has to be
// raised again in round give_up or later, nothing but rounding is left (of columns whose rows are all equal, not even a
// fresh direction): it counts as zero, like a column of at most shortest_column. Such a column gets normals (stream
// kFillStream + round), and R a zero row, its diagonal included.
#pragma once

#include <cstdint>

namespace artent::rsvd {

constexpr double kPivotFloor = 1e-12;    // residual 1e-6 of a column: above what a float64 Gram matrix can lose
constexpr double kPivotHarmless = 1e-2;  // all pivots above (κ ≲ 10): R may be inverted explicitly
// … and no element of R̂⁻¹ above: many columns can each keep a pivot of 0.1 and yet be nearly dependent.
constexpr double kGrowthHarmless = 16;
// Of the rounds "until orthonormal": those that give_up takes, two for the normals, one spare. CUDA launches all of
// them, and a matrix that is done skips the rest.
constexpr int kMaxRounds = 6;
constexpr uint32_t kFillStream = 1;

// All pivots above (and R̂⁻¹ harmless): one round was enough. What it leaves of orthogonality is rounding over this, in
// float64 that of the Gram matrix itself.
template <typename R>
constexpr double pivot_enough = 1e-2;
template <>
constexpr double pivot_enough<double> = 0.5;
// The same where R̂⁻¹ is not at hand (CUDA).
template <typename R>
constexpr double pivot_enough_alone = 0.25;
template <>
constexpr double pivot_enough_alone<double> = 0.5;

// Columns not longer than this are zero: their inverse, or their square, would leave the range.
template <typename R>
constexpr double shortest_column = 1e-37;
template <>
constexpr double shortest_column<double> = 1e-150;

// The first round in which a raised pivot is rounding: a round resolves six digits of a column.
template <typename R>
constexpr int give_up = 1;
template <>
constexpr int give_up<double> = 2;

// One-sided Jacobi, scaled to a largest element of one: columns p, q count as orthogonal when |x_p·x_q| ≤
// kJacobiTolerance·|x_p||x_q|. A column shorter than kLost (products of its squares vanish) has lost its direction: it
// is left alone, its singular value is 0, and W is completed by another.
constexpr double kJacobiTolerance = 1e-15, kLost = 1e-70;
constexpr int kJacobiSweeps = 30;

// Done after a sweep that met no larger cosine: convergence is quadratic, so they are below float32's rounding then. In
// float64 a sweep has to find nothing.
template <typename R>
constexpr double jacobi_enough = 1e-5;
template <>
constexpr double jacobi_enough<double> = kJacobiTolerance;

// Below this share of ‖A‖², ‖A‖² − Σσ̂² is more the rounding of σ̂ than a residual, and the difference is taken in full.
template <typename R>
constexpr double cancellation_share = 1e-3;
template <>
constexpr double cancellation_share<double> = 1e-10;

}  // namespace artent::rsvd

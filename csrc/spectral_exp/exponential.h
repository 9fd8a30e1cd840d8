// The exponential of one skew-Hermitian matrix by a polynomial and squarings, and its gradient.
//
// With A = (K - Kᴴ) / 2^(m + 1) small enough, T(A) = Σ_{k <= 8} Aᵏ / k! takes three products (Bader, Blanes, Casas,
// "Computing the matrix exponential with an optimized Taylor polynomial approximation", Mathematics 2019):
// A₂ = A², A₄ = A₂ (x₁ A + x₂ A₂), T = y₀ + y₁ A + y₂ A₂ + (x₃ A₂ + A₄) (x₄ + x₅ A + x₆ A₂ + x₇ A₄).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/scratch.h"
#include "linalg/combine.h"
#include "linalg/planar.h"
#include "linalg/product.h"

namespace fastlip::spectral_exp {

using linalg::combine;
using linalg::Planar;
using linalg::square_norm;

constexpr double kRoot = 13.304134695650071;  // of 177
constexpr double kX3 = 2.0 / 3, kX1 = kX3 * (1 + kRoot) / 88, kX2 = kX3 * (1 + kRoot) / 352;
constexpr double kX4 = (-271 + 29 * kRoot) / (315 * kX3), kX5 = 11 * (-1 + kRoot) / (1260 * kX3);
constexpr double kX6 = 11 * (-9 + kRoot) / (5040 * kX3), kX7 = (89 - kRoot) / (5040 * kX3 * kX3);
constexpr double kY0 = 1, kY1 = 1, kY2 = (857 - 58 * kRoot) / 630;

// Up to this norm the remainder, norm⁹ / 9!, is half a rounding. Squarings double errors: beyond so many of them another
// precision or method is more accurate.
template <class T>
constexpr double kLargestNorm = sizeof(T) == 4 ? 0.6 : 0.065;
template <class T>
constexpr int kMostSquarings = sizeof(T) == 4 ? 2 : 8;

template <class T, bool complex>
class Exponential {
 public:
  Exponential(int64_t n, bool differentiates, bool parallel)
      : n_(n), differentiates_(differentiates), parallel_(parallel) {
    const int64_t matrices = differentiates ? 9 : 5, powers = differentiates ? kMostSquarings<T> + 1 : 2;
    powers_ = scratch<T, Exponential>((powers + matrices) * size());
    Matrix* all[] = {&a_, &a2_, &a4_, &left_, &right_, &g_, &h_, &p_, &q_};
    for (int64_t i = 0; i < matrices; ++i) all[i]->data = powers_ + (powers + i) * size();
  }

  // exp((K - Kᴴ) / 2), or false where K is too large for it.
  bool run(const T* k, T* result) {
    if (!scale(k)) return false;
    raise(squarings_);
    store(power(squarings_), n_, n_, T{1}, T{0}, result);
    return true;
  }

  // The gradient of K from that of the exponential, or false.
  bool pull_back(const T* gradient, const T* k, T* result) {
    if (!scale(k)) return false;
    raise(squarings_ - 1);
    load(gradient, n_, n_, g_);
    for (int j = squarings_ - 1; j >= 0; --j) {  // E² : E̅ = G Eᴴ + Eᴴ G
      conjugate_transpose(power(j), n_, n_, T{1}, p_);
      product(h_, g_, p_);
      product(h_, p_, g_, T{1}, true);
      std::swap(g_.data, h_.data);
    }
    pull_back_polynomial();
    store(g_, n_, n_, static_cast<T>(std::ldexp(0.5, -squarings_)), T{0}, result);
    return true;
  }

 private:
  using Matrix = Planar<T, complex>;

  int64_t size() const { return Matrix::size(n_, n_); }

  // exp(A)^(2^j); without a gradient only the last two are kept.
  Matrix power(int j) const { return {powers_ + (differentiates_ ? j : j % 2) * size(), n_}; }

  void product(const Matrix& c, const Matrix& a, const Matrix& b, T factor = T{1}, bool add = false) const {
    linalg::multiply(c, a, b, n_, n_, n_, add, factor, parallel_);
  }

  // A, divided by a power of two such that its norm is small, and A².
  bool scale(const T* k) {
    load(k, n_, n_, a_);
    subtract_adjoint(a_, n_);
    combine(a_, n_, {{0.5, a_}}, 0);
    product(a2_, a_, a_);
    double bound = std::sqrt(frobenius_norm(a2_));  // ‖A‖² = ‖A²‖, for A is normal: at most n^(1/4) too large
    if (bound > kLargestNorm<T>) {                  // a product more may save squarings: at most n^(1/8) too large
      product(a4_, a2_, a2_);
      bound = std::min(bound, std::sqrt(std::sqrt(frobenius_norm(a4_))));
    }
    for (squarings_ = 0; bound > kLargestNorm<T> && squarings_ < kMostSquarings<T>; ++squarings_) bound /= 2;
    if (!(bound <= kLargestNorm<T>)) return false;
    if (squarings_ > 0) {
      combine(a_, n_, {{std::ldexp(1, -squarings_), a_}}, 0);
      combine(a2_, n_, {{std::ldexp(1, -2 * squarings_), a2_}}, 0);
    }
    combine(left_, n_, {{kX1, a_}, {kX2, a2_}}, 0);
    product(a4_, a2_, left_);
    combine(left_, n_, {{kX3, a2_}, {1, a4_}}, 0);
    combine(right_, n_, {{kX5, a_}, {kX6, a2_}, {kX7, a4_}}, kX4);
    return true;
  }

  // The powers up to the last; none if it is negative.
  void raise(int last) const {
    if (last < 0) return;
    product(power(0), left_, right_);
    combine(power(0), n_, {{1, power(0)}, {kY1, a_}, {kY2, a2_}}, kY0);
    for (int j = 1; j <= last; ++j) product(power(j), power(j - 1), power(j - 1));
  }

  // From the gradient g of T(A) to twice that of A, in place: its skew part only.
  void pull_back_polynomial() const {
    conjugate_transpose(right_, n_, n_, T{1}, p_);
    product(h_, g_, p_);  // of x₃ A₂ + A₄
    conjugate_transpose(left_, n_, n_, T{1}, p_);
    product(q_, p_, g_);  // of x₄ + x₅ A + x₆ A₂ + x₇ A₄
    const Matrix &of_a = g_, &of_a2 = left_, &of_a4 = right_;
    combine(of_a2, n_, {{kX3, h_}, {kX6, q_}, {kY2, g_}}, 0);
    combine(of_a4, n_, {{1, h_}, {kX7, q_}}, 0);
    combine(of_a, n_, {{kX5, q_}, {kY1, g_}}, 0);
    combine(p_, n_, {{-kX1, a_}, {kX2, a2_}}, 0);  // (x₁ A + x₂ A₂)ᴴ
    product(of_a2, of_a4, p_, T{1}, true);
    product(q_, a2_, of_a4);
    combine(of_a2, n_, {{1, of_a2}, {kX2, q_}}, 0);
    combine(of_a, n_, {{1, of_a}, {kX1, q_}}, 0);
    // A₂ = A²: with S the Hermitian part of its gradient, -(S A + A S) = (S A)ᴴ - S A; the other part gives no skew one.
    conjugate_transpose(of_a2, n_, n_, T{1}, p_);
    combine(p_, n_, {{0.5, p_}, {0.5, of_a2}}, 0);
    product(of_a, p_, a_, T{-2}, true);
    subtract_adjoint(of_a, n_);
  }

  double frobenius_norm(const Matrix& matrix) const { return std::sqrt(square_norm(matrix, n_)); }

  const int64_t n_;
  const bool differentiates_;
  const bool parallel_;
  int squarings_ = 0;
  T* powers_;
  Matrix a_{nullptr, n_};
  Matrix a2_{nullptr, n_};
  Matrix a4_{nullptr, n_};
  Matrix left_{nullptr, n_};
  Matrix right_{nullptr, n_};
  Matrix g_{nullptr, n_};
  Matrix h_{nullptr, n_};
  Matrix p_{nullptr, n_};
  Matrix q_{nullptr, n_};
};

}  // namespace fastlip::spectral_exp

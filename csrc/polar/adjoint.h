// The gradient of one matrix from that of its polar factor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/scratch.h"
#include "linalg/inverse.h"
#include "linalg/positive.h"
#include "linalg/probe.h"
#include "polar/matrix.h"

namespace fastlip::polar {

// V̄ = QX + (I - QQᴴ)Q̄H⁻¹ with HX + XH = M - Mᴴ, M = QᴴQ̄, H = QᴴV. For p > 0, Z = (H + p)⁻¹ and A = I - 2pZ, whose norm
// is below 1, X = Y + AXA with Y = 2p Z(M - Mᴴ)Z: the sum of all AᵏYAᵏ, twice as many terms with each square of A
// (Smith, "Matrix equation XA + BX = C", SIAM J. Appl. Math. 1968).
template <class T, bool complex>
class Adjoint {
 public:
  Adjoint(const Shape& shape, bool parallel) : shape_(shape), m_(shape.rows), n_(shape.columns), parallel_(parallel) {
    const int64_t tall = Matrix::size(m_, n_), wide = Matrix::size(n_, m_), square = Matrix::size(n_, n_);
    T* memory = scratch<T, Adjoint>(3 * tall + wide + 6 * square + 5 * linalg::vector_size(h_));
    const auto take = [&](Matrix& matrix, int64_t size, int64_t rows) {
      matrix.data = memory;
      memory += size;
      clear_padding(matrix, rows);
    };
    for (Matrix* matrix : {&q_, &v_, &r_}) take(*matrix, tall, m_);
    take(adjoint_, wide, n_);
    for (Matrix* matrix : {&h_, &t_, &a_, &w_, &y_, &c_}) take(*matrix, square, n_);
    vectors_ = memory;
  }

  // NaN if V is not finite. False where V is so ill-conditioned that the gradient was not found.
  bool run(const T* gradient, const T* q, const T* v, T* result) {
    load_both(v, shape_, v_, adjoint_, parallel_);
    const T unit = unit_of(largest_part(v_, m_));
    if (std::isnan(unit)) {
      std::fill_n(result, m_ * n_ * Matrix::kPlanes, unit);
      return true;
    }
    if (unit == 0) return false;
    combine(v_, m_, {{unit, v_}}, 0, parallel_);
    load_both(gradient, shape_, r_, adjoint_, parallel_);
    load_both(q, shape_, q_, adjoint_, parallel_);
    // Q's rounding errors cancel in the mean of both halves, where singular values are small.
    multiply_half(h_, adjoint_, v_, n_, m_, T{1}, parallel_);
    if (!is_even()) {
      multiply(w_, adjoint_, v_, n_, n_, m_);
      linalg::conjugate_transpose(w_, n_, n_, T{1}, h_, parallel_);
      combine(h_, n_, {{0.5, h_}, {0.5, w_}}, 0, parallel_);
    }
    multiply(t_, adjoint_, r_, n_, n_, m_);
    if (m_ > n_) linalg::multiply(r_, q_, t_, m_, n_, n_, true, T{-1}, parallel_);
    linalg::subtract_adjoint(t_, n_);
    combine(c_, n_, {{1, t_}}, 0, parallel_);
    if (!solve()) return false;
    multiply(v_, q_, t_, m_, n_, n_);
    if (m_ > n_) {
      linalg::Inverse<T, complex>(whole(h_), n_, parallel_).run();
      linalg::multiply(v_, r_, h_, m_, n_, n_, true, T{1}, parallel_);
    }
    store_either(v_, shape_, unit, adjoint_, result);
    return true;
  }

 private:
  using Matrix = Planar<T, complex>;
  static constexpr int kMostDoublings = 12;
  static constexpr double kEven = 0.2;
  static constexpr double kRoundings = 8;
  static constexpr int64_t kProbed = 32;

  void multiply(const Matrix& c, const Matrix& a, const Matrix& b, int64_t rows, int64_t columns,
                int64_t length) const {
    linalg::multiply(c, a, b, rows, columns, length, false, T{1}, parallel_);
  }

  // t = X from t = M - Mᴴ, or false where too many squares would be needed: where H is nearly singular.
  bool solve() const {
    const double p = shift();
    if (!(p > 0)) return false;
    combine(a_, n_, {{1, h_}}, p, parallel_);
    linalg::PositiveInverse<T, complex>(a_, n_, parallel_).run();
    multiply(w_, a_, t_, n_, n_, n_);
    multiply_half(t_, w_, a_, n_, n_, T{-1}, parallel_);
    combine(t_, n_, {{2 * p, t_}}, 0, parallel_);
    combine(a_, n_, {{-2 * p, a_}}, 1, parallel_);
    for (int doublings = 0; !is_solved(doublings > 0); ++doublings) {
      if (doublings == kMostDoublings) return false;
      if (doublings > 0) {
        multiply_half(w_, a_, a_, n_, n_, T{1}, parallel_);
        combine(a_, n_, {{1, w_}}, 0, parallel_);
      }
      multiply(w_, a_, t_, n_, n_, n_);
      multiply_half(y_, w_, a_, n_, n_, T{-1}, parallel_);
      combine(t_, n_, {{1, t_}, {1, y_}}, 0, parallel_);
    }
    return true;
  }

  // Whether t solves the equation: what is missing is A X A, or A² X A² after a doubling with A. Where that is no bound,
  // HX + XH - R is small for a vector of signs, which every matrix of few large entries changes.
  bool is_solved(bool doubled) const {
    const double eps = std::numeric_limits<T>::epsilon(), square = linalg::square_norm(a_, n_);
    if ((doubled ? square * square : square) <= eps) return true;
    if (!doubled || n_ < kProbed) return false;
    const int64_t size = linalg::vector_size(h_);
    T *x = vectors_, *Hx = x + size, *Xx = Hx + size, *Rx = Xx + size, *rest = Rx + size;
    std::fill_n(x, 5 * size, T{0});
    linalg::fill_signs(x, n_);
    linalg::add_product(h_, n_, T{1}, x, Hx);
    linalg::add_product(t_, n_, T{1}, x, Xx);
    linalg::add_product(c_, n_, T{1}, x, Rx);
    linalg::add_product(h_, n_, T{1}, Xx, rest);
    linalg::add_product(t_, n_, T{1}, Hx, rest);
    double missing = 0, whole = 0;
    for (int64_t i = 0; i < size; ++i) {
      missing += static_cast<double>(rest[i] - Rx[i]) * (rest[i] - Rx[i]);
      whole += static_cast<double>(Rx[i]) * Rx[i];
    }
    return missing <= kRoundings * kRoundings * eps * eps * whole;
  }

  // Whether H's eigenvalues are alike enough for one half of QᴴV to be H.
  bool is_even() const { return variance() < kEven; }

  // About the geometric mean of H's smallest and largest eigenvalue: that of an even distribution between them.
  double shift() const {
    constexpr double kLeast = 0.15;
    return linalg::trace(h_, n_) / n_ * std::sqrt(std::clamp(1 - 3 * variance(), kLeast * kLeast, 1.0));
  }

  // Of H's eigenvalues, relative to the square of their mean.
  double variance() const {
    const double mean = linalg::trace(h_, n_) / n_;
    return linalg::square_norm(h_, n_) / (n_ * mean * mean) - 1;
  }

  const Shape shape_;
  const int64_t m_;
  const int64_t n_;
  const bool parallel_;
  Matrix q_{nullptr, n_};
  Matrix v_{nullptr, n_};
  Matrix r_{nullptr, n_};  // Q̄, then (I - QQᴴ)Q̄
  Matrix adjoint_{nullptr, m_};
  Matrix h_{nullptr, n_};
  Matrix t_{nullptr, n_};
  Matrix a_{nullptr, n_};
  Matrix w_{nullptr, n_};
  Matrix y_{nullptr, n_};
  Matrix c_{nullptr, n_};  // R
  T* vectors_;
};

}  // namespace fastlip::polar

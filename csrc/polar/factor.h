// The polar factor of one matrix.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/scratch.h"
#include "linalg/positive.h"
#include "polar/halley.h"
#include "polar/matrix.h"

namespace fastlip::polar {

template <class T, bool complex>
class Factor {
 public:
  Factor(const Shape& shape, bool parallel) : shape_(shape), m_(shape.rows), n_(shape.columns), parallel_(parallel) {
    const int64_t tall = Matrix::size(m_, n_), wide = Matrix::size(n_, m_), square = Matrix::size(n_, n_);
    T* memory = scratch<T, Factor>(2 * tall + wide + 4 * square);
    const auto take = [&](Matrix& matrix, int64_t size, int64_t rows) {
      matrix.data = memory;
      memory += size;
      clear_padding(matrix, rows);
    };
    take(x_, tall, m_);
    take(y_, tall, m_);
    take(adjoint_, wide, n_);
    for (Matrix* matrix : {&g_, &z_, &h_, &w_}) take(*matrix, square, n_);
  }

  // Q with V = QH, H positive, of NaN if V is not finite. False where V is so ill-conditioned that it was not found.
  bool run(const T* v, T* q) {
    load_both(v, shape_, x_, adjoint_, parallel_);
    const T unit = unit_of(largest_part(x_, m_));
    if (std::isnan(unit)) {
      std::fill_n(q, m_ * n_ * Matrix::kPlanes, unit);
      return true;
    }
    if (unit == 0) return false;
    combine(x_, m_, {{unit, x_}}, 0, parallel_);
    combine(adjoint_, n_, {{unit, adjoint_}}, 0, parallel_);
    multiply_half(g_, adjoint_, x_, n_, m_, T{1}, parallel_);
    const double mean = linalg::trace(g_, n_) / n_;
    const double spread = std::sqrt(std::max(0.0, linalg::square_norm(g_, n_) / (n_ * mean * mean) - 1));
    Halley halley(spread);
    const double scale = mean * halley.largest_square();
    combine(x_, m_, {{1 / std::sqrt(scale), x_}}, 0, parallel_);
    combine(g_, n_, {{-1 / scale, g_}}, 1, parallel_);
    // Of a V that is nearly orthonormal the next step may be the last: it needs I - XᴴX of X as it was rounded.
    if (linalg::square_norm(g_, n_) < 1) look();
    while (!is_last_step()) {
      if (halley.is_exhausted()) return false;
      halley.look_at(linalg::square_norm(g_, n_), linalg::trace(g_, n_));
      advance(halley.next());
    }
    store_either(y_, shape_, T{1}, adjoint_, q);
    return true;
  }

 private:
  using Matrix = Planar<T, complex>;
  // What polynomials that end before D², D³ and D⁵ leave out of (I - D)^(-1/2), in multiples of these powers.
  static constexpr double kSecond = 0.375, kThird = 0.3125, kFifth = 0.24609375;
  static constexpr double kSmall = 0.1, kLeastFourth = 0.22;  // of ‖D‖₂², with which ‖0.3125 D + 0.27 D²‖ is so much ‖D‖

  // Whether y = X p(D), D = I - XᴴX = g, is the factor: the polynomial p of degree k - 1 begins (I - D)^(-1/2), the
  // series of D's powers, and leaves an error of order k. A y that does not suffice takes the place of X.
  bool is_last_step() const {
    // What is left of the singular values is less than a rounding.
    const double fine = std::numeric_limits<T>::epsilon() * std::max(0.25, std::sqrt(n_) / 16);
    const double norm = std::sqrt(linalg::square_norm(g_, n_)), trace = linalg::trace(g_, n_);
    if (kSecond * norm * norm <= fine) return apply({{0.5, g_}}), true;
    // The mean of D weighted by D, and what is typical of eigenvalues around 0.
    const double typical = std::max(trace > 0 ? norm * norm / trace : 0.0, std::sqrt(2.0 / n_) * norm);
    if (!(kFifth * std::pow(norm * typical * typical, 5.0 / 3) <= fine)) return false;
    multiply_half(h_, g_, g_, n_, n_, T{1}, parallel_);
    const double square = std::sqrt(linalg::square_norm(h_, n_));  // at least ‖D‖₂²
    if (kThird * std::pow(square, 1.5) <= fine) return apply({{0.5, g_}, {0.375, h_}}), true;
    combine(z_, n_, {{0.3125, g_}, {0.2734375, h_}}, 0, parallel_);
    multiply_half(w_, z_, h_, n_, n_, T{1}, parallel_);
    apply({{0.5, g_}, {0.375, h_}, {1, w_}});
    const double cube = std::sqrt(linalg::square_norm(w_, n_)) / kLeastFourth;  // at least ‖D‖₂³
    if (square <= kSmall && kFifth * std::pow(cube, 5.0 / 3) <= fine) return true;
    combine(x_, m_, {{1, y_}}, 0, parallel_);
    look();
    return is_last_step();
  }

  // y = X + X times the sum, whose rounding errors are small as the sum is.
  template <size_t count>
  void apply(const linalg::Term<T, complex> (&terms)[count]) const {
    combine(z_, n_, terms, 0, parallel_);
    linalg::multiply(y_, x_, z_, m_, n_, n_, false, T{1}, parallel_);
    combine(y_, m_, {{1, x_}, {1, y_}}, 0, parallel_);
  }

  // X = X (aI + bXᴴX)(I + cXᴴX)⁻¹ = b/c X + (a - b/c) X (I + cXᴴX)⁻¹
  void advance(const Weights& weights) const {
    const auto [a, b, c] = weights;
    combine(z_, n_, {{-c, g_}}, 1 + c, parallel_);
    linalg::PositiveInverse<T, complex>(z_, n_, parallel_).run();
    linalg::multiply(y_, x_, z_, m_, n_, n_, false, T{1}, parallel_);
    combine(x_, m_, {{b / c, x_}, {a - b / c, y_}}, 0, parallel_);
    look();
  }

  // g = I - XᴴX
  void look() const {
    linalg::conjugate_transpose(x_, m_, n_, T{1}, adjoint_, parallel_);
    multiply_half(g_, adjoint_, x_, n_, m_, T{1}, parallel_);
    combine(g_, n_, {{-1, g_}}, 1, parallel_);
  }

  const Shape shape_;
  const int64_t m_;
  const int64_t n_;
  const bool parallel_;
  Matrix x_{nullptr, n_};
  Matrix y_{nullptr, n_};
  Matrix adjoint_{nullptr, m_};
  Matrix g_{nullptr, n_};  // I - XᴴX
  Matrix z_{nullptr, n_};
  Matrix h_{nullptr, n_};  // g²
  Matrix w_{nullptr, n_};
};

}  // namespace fastlip::polar

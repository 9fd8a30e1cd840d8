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
    T* memory = scratch<T, Factor>(2 * tall + wide + 2 * square);
    const auto take = [&](Matrix& matrix, int64_t size, int64_t rows) {
      matrix.data = memory;
      memory += size;
      clear_padding(matrix, rows);
    };
    take(x_, tall, m_);
    take(y_, tall, m_);
    take(adjoint_, wide, n_);
    take(g_, square, n_);
    take(z_, square, n_);
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
    combine(g_, n_, {{1 / scale, g_}}, -1, parallel_);
    // What a cubic step squares to a rounding of each singular value.
    const double fine = std::numeric_limits<T>::epsilon() * std::sqrt(n_);
    for (double defect = linalg::square_norm(g_, n_); !(defect <= fine); defect = linalg::square_norm(g_, n_)) {
      if (halley.is_exhausted()) return false;
      halley.look_at(defect, -linalg::trace(g_, n_));
      advance(halley.next(), defect * defect <= fine);
    }
    combine(z_, n_, {{-0.5, g_}}, 1, parallel_);  // X (3I - XᴴX) / 2, whose norm is at most 1
    linalg::multiply(y_, x_, z_, m_, n_, n_, false, T{1}, parallel_);
    store_either(y_, shape_, T{1}, adjoint_, q);
    return true;
  }

 private:
  using Matrix = Planar<T, complex>;

  // X = X (aI + bXᴴX)(I + cXᴴX)⁻¹ = b/c X + (a - b/c) X (I + cXᴴX)⁻¹ or, near the end, X (3I - XᴴX) / 2;
  // g = XᴴX - I
  void advance(const Weights& weights, bool cubic) const {
    const auto [a, b, c] = weights;
    combine(z_, n_, {{cubic ? -0.5 : c, g_}}, cubic ? 1 : 1 + c, parallel_);
    if (!cubic) linalg::PositiveInverse<T, complex>(z_, n_, parallel_).run();
    linalg::multiply(y_, x_, z_, m_, n_, n_, false, T{1}, parallel_);
    if (cubic) {
      combine(x_, m_, {{1, y_}}, 0, parallel_);
    } else {
      combine(x_, m_, {{b / c, x_}, {a - b / c, y_}}, 0, parallel_);
    }
    linalg::conjugate_transpose(x_, m_, n_, T{1}, adjoint_, parallel_);
    multiply_half(g_, adjoint_, x_, n_, m_, T{1}, parallel_);
    linalg::add_to_diagonal(g_, n_, T{-1});
  }

  const Shape shape_;
  const int64_t m_;
  const int64_t n_;
  const bool parallel_;
  Matrix x_{nullptr, n_};
  Matrix y_{nullptr, n_};
  Matrix adjoint_{nullptr, m_};
  Matrix g_{nullptr, n_};
  Matrix z_{nullptr, n_};
};

}  // namespace fastlip::polar

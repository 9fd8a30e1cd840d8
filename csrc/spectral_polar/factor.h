// The unitary polar factor of one square matrix.
#pragma once

#include <cmath>
#include <cstdint>

#include "cayley/inverse.h"
#include "cayley/product.h"
#include "common/scratch.h"
#include "spectral_polar/rational.h"

namespace fastlip::spectral_polar {

template <class T, bool complex>
class Factor {
 public:
  Factor(int64_t n, bool parallel) : n_(n), parallel_(parallel) {
    const int64_t size = Matrix::size(n, n);
    T* memory = scratch<T, Factor>(4 * size);
    for (Matrix* matrix : {&x_, &y_, &g_, &z_}) {
      matrix->data = memory;
      memory += size;
      clear_padding(*matrix, n);
    }
  }

  // Q with V = QH, H positive, or false where V is so ill-conditioned or so near overflow that it was not found.
  bool run(const T* v, T* q) {
    load(v, n_, n_, x_);
    update_gram();
    const double scale = scale_of(g_, n_);
    if (scale == 0) return false;
    combine(x_, n_, {{1 / std::sqrt(scale), x_}}, 0);
    combine(g_, n_, {{1 / scale, g_}}, 0);
    for (Halley halley; !subtract_identity(g_, n_); update_gram()) {
      if (halley.is_exhausted()) return false;
      advance(halley.next());
    }
    combine(z_, n_, {{-0.5, g_}}, 1);  // X (3I - XᴴX) / 2, whose norm is at most 1
    multiply(y_, x_, z_, n_, n_, n_, false, T{1}, parallel_);
    store(y_, n_, n_, T{1}, T{0}, q);
    return true;
  }

 private:
  using Matrix = Planar<T, complex>;

  void update_gram() const {
    conjugate_transpose(x_, n_, n_, T{1}, z_);
    multiply(g_, z_, x_, n_, n_, n_, false, T{1}, parallel_);
  }

  // X = X (aI + bG)(I + cG)⁻¹ = b/c X + (a - b/c) X (I + cG)⁻¹, for g = G - I
  void advance(const Weights& weights) const {
    const auto [a, b, c] = weights;
    combine(z_, n_, {{c, g_}}, 1 + c);
    cayley::Inverse<T, complex>(whole(z_), n_, parallel_).run();
    multiply(y_, x_, z_, n_, n_, n_, false, T{1}, parallel_);
    combine(x_, n_, {{b / c, x_}, {a - b / c, y_}}, 0);
  }

  const int64_t n_;
  const bool parallel_;
  Matrix x_{nullptr, n_};
  Matrix y_{nullptr, n_};
  Matrix g_{nullptr, n_};
  Matrix z_{nullptr, n_};
};

}  // namespace fastlip::spectral_polar

// The gradient of one square matrix from that of its polar factor.
#pragma once

#include <cstdint>

#include "cayley/inverse.h"
#include "cayley/product.h"
#include "common/scratch.h"
#include "spectral_polar/rational.h"

namespace fastlip::spectral_polar {

// V̄ = QX with HX + XH = QᴴQ̄ - Q̄ᴴQ, H = QᴴV. This X is the derivative of the polar factor of H, which is I, in the
// direction t = (QᴴQ̄ - Q̄ᴴQ) / 2: the iteration on H, which stays Hermitian, takes t along, which stays skew-Hermitian.
template <class T, bool complex>
class Adjoint {
 public:
  Adjoint(int64_t n, bool parallel) : n_(n), parallel_(parallel) {
    const int64_t size = Matrix::size(n, n);
    T* memory = scratch<T, Adjoint>(7 * size);
    for (Matrix* matrix : {&h_, &t_, &g_, &inverse_, &p_, &k_, &w_}) {
      matrix->data = memory;
      memory += size;
      clear_padding(*matrix, n);
    }
  }

  // False where V is so ill-conditioned or so near overflow that the gradient was not found.
  bool run(const T* gradient, const T* q, const T* v, T* result) {
    load(q, n_, n_, w_);
    conjugate_transpose(w_, n_, n_, T{1}, p_);
    load(v, n_, n_, w_);
    product(h_, p_, w_);
    load(gradient, n_, n_, w_);
    product(t_, p_, w_);
    conjugate_transpose(h_, n_, n_, T{1}, w_);
    const double scale = scale_of(h_, n_);
    if (scale == 0) return false;
    combine(h_, n_, {{0.5 / scale, h_}, {0.5 / scale, w_}}, 0);
    subtract_adjoint(t_, n_);
    combine(t_, n_, {{0.5 / scale, t_}}, 0);
    Halley halley;
    for (product(g_, h_, h_); !subtract_identity(g_, n_); product(g_, h_, h_)) {
      if (halley.is_exhausted()) return false;
      advance(halley.next());
    }
    // Of h (3I - h²) / 2, where h is nearly I
    product(w_, t_, g_);
    subtract_adjoint(w_, n_);
    combine(t_, n_, {{1, t_}, {-0.25, w_}}, 0);
    load(q, n_, n_, p_);
    product(w_, p_, t_);
    store(w_, n_, n_, T{1}, T{0}, result);
    return true;
  }

 private:
  using Matrix = Planar<T, complex>;

  void product(const Matrix& c, const Matrix& a, const Matrix& b) const {
    cayley::multiply(c, a, b, n_, n_, n_, false, T{1}, parallel_);
  }

  // With Z = (I + c h²)⁻¹ and P = hZ: h = b/c h + (a - b/c) P, and its derivative
  // t = b/c t + (a - b/c) (t - c P [h, t]) Z, where [h, t] = ht + (ht)ᴴ. Here g = h² - I.
  void advance(const Weights& weights) const {
    const auto [a, b, c] = weights;
    product(w_, h_, t_);
    conjugate_transpose(w_, n_, n_, T{1}, p_);
    combine(k_, n_, {{c, w_}, {c, p_}}, 0);
    combine(inverse_, n_, {{c, g_}}, 1 + c);
    cayley::Inverse<T, complex>(whole(inverse_), n_, parallel_).run();
    product(p_, h_, inverse_);
    product(w_, p_, k_);
    combine(w_, n_, {{1, t_}, {-1, w_}}, 0);
    product(k_, w_, inverse_);
    combine(t_, n_, {{b / c, t_}, {a - b / c, k_}}, 0);
    combine(h_, n_, {{b / c, h_}, {a - b / c, p_}}, 0);
  }

  const int64_t n_;
  const bool parallel_;
  Matrix h_{nullptr, n_};
  Matrix t_{nullptr, n_};
  Matrix g_{nullptr, n_};
  Matrix inverse_{nullptr, n_};
  Matrix p_{nullptr, n_};
  Matrix k_{nullptr, n_};
  Matrix w_{nullptr, n_};
};

}  // namespace fastlip::spectral_polar

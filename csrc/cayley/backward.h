// The gradient of one matrix from that of its Cayley transform.
#pragma once

#include <cstdint>

#include "common/scratch.h"
#include "linalg/combine.h"
#include "linalg/planar.h"
#include "linalg/product.h"

namespace fastlip::cayley {

using linalg::add_to_diagonal;
using linalg::conjugate_transpose;
using linalg::load;
using linalg::multiply;
using linalg::Planar;
using linalg::store;
using linalg::subtract_adjoint;

// With B = (I + A)⁻¹ and H = Q̄₁ - VᴴQ̄₂: Ā = -2 BᴴHBᴴ, Ū = Ā - Āᴴ, V̄ = -2 Q̄₂Bᴴ + V(Ā + Āᴴ).
template <class T, bool complex>
class Adjoint {
 public:
  Adjoint(int64_t n, int64_t extra, bool parallel) : n_(n), extra_(extra), parallel_(parallel) {
    const int64_t square = Matrix::size(n, n), tall = extra > 0 ? Matrix::size(extra, n) : 0;
    const int64_t wide = extra > 0 ? Matrix::size(n, extra) : 0;
    T* memory = scratch<T, Adjoint>(3 * square + 3 * tall + wide);
    const auto take = [&](int64_t size) { return memory += size, memory - size; };
    for (Matrix* matrix : {&a_, &b_, &c_}) matrix->data = take(square);
    for (Matrix* matrix : {&v_, &lower_, &result_}) matrix->data = take(tall);
    adjoint_.data = take(wide);
  }

  // For square matrices: B = (Q + I) / 2.
  void run(const T* gradient, const T* q, T* m_gradient) const {
    load(q, n_, n_, a_);
    add_to_diagonal(a_, n_, T{1});
    conjugate_transpose(a_, n_, n_, T{0.5}, b_);
    load(gradient, n_, n_, a_);
    pull_back();
    subtract_adjoint(a_, n_);
    store(a_, n_, n_, T{-2}, T{0}, m_gradient);
  }

  // A wide matrix is given by its adjoint, and so are the gradients.
  void run_tall(const T* gradient, const T* m, const T* inverse, T* m_gradient, bool wide) const {
    const int64_t below = n_ * (wide ? 1 : n_) * Matrix::kPlanes, step = n_ + extra_;
    load(inverse, n_, n_, a_);
    conjugate_transpose(a_, n_, n_, T{1}, b_, parallel_);
    if (wide) {
      load(gradient, n_, n_, c_, step);
      conjugate_transpose(c_, n_, n_, T{1}, a_, parallel_);
      load(gradient + below, n_, extra_, adjoint_, step);
      conjugate_transpose(adjoint_, n_, extra_, T{1}, lower_, parallel_);
      load(m + below, n_, extra_, adjoint_, step);
      conjugate_transpose(adjoint_, n_, extra_, T{1}, v_, parallel_);
    } else {
      load(gradient, n_, n_, a_);
      load(gradient + below, extra_, n_, lower_);
      load(m + below, extra_, n_, v_);
      conjugate_transpose(v_, extra_, n_, T{1}, adjoint_, parallel_);
    }
    multiply(a_, adjoint_, lower_, n_, n_, extra_, true, T{-1}, parallel_);
    pull_back();
    // V̄ / -2 = Q̄₂Bᴴ + V(X + Xᴴ) with X = BᴴHBᴴ
    multiply(result_, lower_, b_, extra_, n_, n_, false, T{1}, parallel_);
    conjugate_transpose(a_, n_, n_, T{1}, c_, parallel_);
    linalg::combine(c_, n_, {{1, a_}, {1, c_}}, 0, parallel_);
    multiply(result_, v_, c_, extra_, n_, n_, true, T{1}, parallel_);
    subtract_adjoint(a_, n_);
    if (wide) {
      conjugate_transpose(result_, extra_, n_, T{1}, adjoint_, parallel_);
      store(adjoint_, n_, extra_, T{-2}, T{0}, m_gradient + below, step);
      store(a_, n_, n_, T{2}, T{0}, m_gradient, step);
    } else {
      store(result_, extra_, n_, T{-2}, T{0}, m_gradient + below);
      store(a_, n_, n_, T{-2}, T{0}, m_gradient);
    }
  }

 private:
  using Matrix = Planar<T, complex>;

  // a = b a b
  void pull_back() const {
    multiply(c_, b_, a_, n_, n_, n_, false, T{1}, parallel_);
    multiply(a_, c_, b_, n_, n_, n_, false, T{1}, parallel_);
  }

  const int64_t n_;
  const int64_t extra_;
  const bool parallel_;
  Matrix a_{nullptr, n_};
  Matrix b_{nullptr, n_};  // Bᴴ
  Matrix c_{nullptr, n_};
  Matrix v_{nullptr, n_};
  Matrix lower_{nullptr, n_};  // Q̄₂
  Matrix result_{nullptr, n_};
  Matrix adjoint_{nullptr, extra_};  // Vᴴ
};

}  // namespace fastlip::cayley

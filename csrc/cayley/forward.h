// The Cayley transform of one matrix, and how far it is from orthonormal columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/gemm.h"
#include "common/scratch.h"
#include "linalg/combine.h"
#include "linalg/inverse.h"
#include "linalg/planar.h"
#include "linalg/positive.h"
#include "linalg/product.h"

namespace fastlip::cayley {

using linalg::add_to_diagonal;
using linalg::conjugate_transpose;
using linalg::Inverse;
using linalg::load;
using linalg::multiply;
using linalg::Planar;
using linalg::store;
using linalg::subtract_adjoint;

template <class V, int... lane>
inline auto sum_lanes(V value, std::integer_sequence<int, lane...>) {
  constexpr int half = sizeof...(lane);
  if constexpr (half == 1) {
    return value[0] + value[1];
  } else {
    const auto sum =
        __builtin_shufflevector(value, value, lane...) + __builtin_shufflevector(value, value, (half + lane)...);
    return sum_lanes(sum, std::make_integer_sequence<int, half / 2>{});
  }
}

// z += scale Aᴴ y with y = C x, for `rows` rows of A and C from the i-th on. C = scale A or, with the identity,
// scale A - I; then y is kept, since z is to be reduced by it. Vectors hold all real parts, then, A's `plane` behind
// them, all imaginary parts.
template <class T, bool complex, bool identity, int rows>
inline void add_gram_rows(const Planar<T, complex>& a, int64_t i, T scale, const T* x, T* y, T* z) {
  constexpr int lanes = kLaneCount<T>;
  const int64_t plane = a.plane;
  const auto element = [&](int r, int64_t j) { return load_lanes(a.at(i + r, j)); };
  Lanes<T> dot_re[rows] = {}, dot_im[rows] = {};
  for (int64_t j = 0; j < plane; j += lanes) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      dot_re[r] += element(r, j) * load_lanes(x + j);
      if constexpr (complex) {
        dot_im[r] += element(r, j) * load_lanes(x + plane + j);
        dot_re[r] -= element(r, plane + j) * load_lanes(x + plane + j);
        dot_im[r] += element(r, plane + j) * load_lanes(x + j);
      }
    }
  }
  T s_re[rows], s_im[rows];
  const std::make_integer_sequence<int, lanes / 2> half;
  for (int r = 0; r < rows; ++r) {
    const T y_re = scale * sum_lanes(dot_re[r], half) - (identity ? x[i + r] : T{0});
    const T y_im = complex ? scale * sum_lanes(dot_im[r], half) - (identity ? x[plane + i + r] : T{0}) : T{0};
    s_re[r] = scale * y_re;
    s_im[r] = scale * y_im;
    if constexpr (identity) y[i + r] = y_re;
    if constexpr (identity && complex) y[plane + i + r] = y_im;
  }
  for (int64_t j = 0; j < plane; j += lanes) {
    Lanes<T> re = {}, im = {};
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      re += s_re[r] * element(r, j);
      if constexpr (complex) {
        re += s_im[r] * element(r, plane + j);
        im += s_im[r] * element(r, j);
        im -= s_re[r] * element(r, plane + j);
      }
    }
    store_lanes<T>(z + j, load_lanes(z + j) + re);
    if constexpr (complex) store_lanes<T>(z + plane + j, load_lanes(z + plane + j) + im);
  }
}

template <class T, bool complex, bool identity>
void add_gram_product(const Planar<T, complex>& a, int64_t rows, T scale, const T* x, T* y, T* z) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) add_gram_rows<T, complex, identity, 4>(a, i, scale, x, y, z);
  for (; i < rows; ++i) add_gram_rows<T, complex, identity, 1>(a, i, scale, x, y, z);
}

// The transform Q = [2B - I; -2VB] of an (n + extra) x n matrix [U; V], B = (I + U - Uᴴ + VᴴV)⁻¹, computed in T.
template <class T, bool complex>
class Transform {
 public:
  Transform(int64_t n, int64_t extra, bool parallel) : n_(n), extra_(extra), parallel_(parallel) {
    const int64_t square = Matrix::size(n, n), tall = extra > 0 ? Matrix::size(extra, n) : 0;
    const int64_t wide = extra > 0 ? Matrix::size(n, extra) : 0;
    T* memory = scratch<T, Transform>((extra > 0 ? 2 : 1) * square + 2 * tall + wide + 3 * vector_size());
    const auto take = [&](int64_t size) { return memory += size, memory - size; };
    inverse_.data = take(square);
    gram_.data = take(extra > 0 ? square : 0);
    v_.data = take(tall);
    product_.data = take(tall);
    adjoint_.data = take(wide);
    vectors_ = memory;
  }

  // A wide matrix is given by its adjoint.
  template <class S>
  void run(const S* m, bool wide) {
    load(m, n_, n_, inverse_, wide ? n_ + extra_ : n_);
    subtract_adjoint(inverse_, n_);
    if (wide) linalg::combine(inverse_, n_, {{-1, inverse_}}, 0, parallel_);
    add_to_diagonal(inverse_, n_, T{1});
    if (extra_ > 0) {
      if (wide) {
        load(m + n_ * Matrix::kPlanes, n_, extra_, adjoint_, n_ + extra_);
        conjugate_transpose(adjoint_, n_, extra_, T{1}, v_, parallel_);
      } else {
        load(m + n_ * n_ * Matrix::kPlanes, extra_, n_, v_);
        conjugate_transpose(v_, extra_, n_, T{1}, adjoint_, parallel_);
      }
      multiply<T, complex, true>(gram_, adjoint_, v_, n_, n_, extra_, false, T{1}, parallel_);
      linalg::mirror<T, complex>(gram_, n_, T{1}, T{1}, parallel_);
      linalg::combine(inverse_, n_, {{1, inverse_}, {1, gram_}}, 0, parallel_);
    }
    size_ = std::sqrt(linalg::square_norm(inverse_, n_) / n_);
    Inverse<T, complex>(whole(inverse_), n_, parallel_).run();
    if (extra_ > 0) multiply(product_, v_, inverse_, extra_, n_, n_, false, T{1}, parallel_);
  }

  // The root mean square of the singular values of I + A.
  double size() const { return size_; }

  // An estimate of ‖D‖₂ for D = QᴴQ - I, from below: ‖D D x‖ / ‖D x‖ for a vector x of signs. It is near the norm where
  // few eigenvalues of D stand out, and 0.7 of it where they are spread as a random matrix's. NaN where Q has a NaN.
  double defect() const {
    T *x = vectors_, *y = x + vector_size();
    std::fill_n(x, vector_size(), T{0});
    for (int64_t i = 0; i < n_; ++i) x[i] = static_cast<uint64_t>(i) * kGolden >> 63 ? T{-1} : T{1};
    apply_defect(x, y);
    const double once = square_norm(y);
    apply_defect(y, x);
    return once == 0 ? 0 : std::sqrt(square_norm(x) / once);
  }

  // inverse is null where it is not wanted. Nothing is left of the matrices that were computed with.
  template <class S>
  void write(S* q, S* inverse, bool wide) const {
    const int64_t step = n_ + extra_;
    if (inverse != nullptr) store(inverse_, n_, n_, T{1}, T{0}, inverse);
    if (wide) {
      conjugate_transpose(inverse_, n_, n_, T{1}, gram_, parallel_);
      store(gram_, n_, n_, T{2}, T{-1}, q, step);
      conjugate_transpose(product_, extra_, n_, T{1}, adjoint_, parallel_);
      store(adjoint_, n_, extra_, T{-2}, T{0}, q + n_ * Matrix::kPlanes, step);
    } else {
      store(inverse_, n_, n_, T{2}, T{-1}, q);
      if (extra_ > 0) store(product_, extra_, n_, T{-2}, T{0}, q + n_ * n_ * Matrix::kPlanes);
    }
  }

 private:
  using Matrix = Planar<T, complex>;
  static constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

  int64_t vector_size() const { return Matrix::kPlanes * inverse_.plane; }

  // z = D x
  void apply_defect(const T* x, T* z) const {
    T* y = vectors_ + 2 * vector_size();
    std::fill_n(z, vector_size(), T{0});
    std::fill_n(y, vector_size(), T{0});
    add_gram_product<T, complex, true>(inverse_, n_, T{2}, x, y, z);
    if (extra_ > 0) add_gram_product<T, complex, false>(product_, extra_, T{2}, x, y, z);
    for (int64_t i = 0; i < vector_size(); ++i) z[i] -= y[i] + x[i];
  }

  double square_norm(const T* x) const {
    double sum = 0;
    for (int64_t i = 0; i < vector_size(); ++i) sum += static_cast<double>(x[i]) * x[i];
    return sum;
  }

  const int64_t n_;
  const int64_t extra_;
  const bool parallel_;
  Matrix inverse_{nullptr, n_};  // I + A, then B
  Matrix gram_{nullptr, n_};  // VᴴV
  Matrix v_{nullptr, n_};
  Matrix product_{nullptr, n_};  // VB
  Matrix adjoint_{nullptr, extra_};  // Vᴴ
  T* vectors_;
  double size_ = 0;
};

}  // namespace fastlip::cayley

// The Cayley transform of one matrix, and how wrong it is.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cayley/inverse.h"
#include "cayley/planar.h"
#include "cayley/product.h"
#include "common/gemm.h"
#include "common/scratch.h"

namespace fastlip::cayley {

// target += Σ_i x_i A[i, :]; vectors hold all real parts, then, `plane` behind them, all imaginary parts.
template <class T, bool complex>
void add_row_combination(const T* x, int64_t x_plane, const Planar<T, complex>& a, int64_t rows, T* target) {
  constexpr int lanes = kLaneCount<T>;
  for (int64_t j = 0; j < a.plane; j += lanes) {
    Lanes<T> sum[4] = {};
    for (int64_t i = 0; i < rows; ++i) {
      const Lanes<T> re = load_lanes(a.at(i, j));
      sum[0] += x[i] * re;
      if constexpr (complex) {
        const Lanes<T> im = load_lanes(a.at(i, j) + a.plane);
        sum[1] += x[x_plane + i] * im;
        sum[2] += x[i] * im;
        sum[3] += x[x_plane + i] * re;
      }
    }
    store_lanes<T>(target + j, load_lanes(target + j) + (sum[0] - sum[1]));
    if constexpr (complex) {
      T* imaginary = target + a.plane + j;
      store_lanes<T>(imaginary, load_lanes(imaginary) + (sum[2] + sum[3]));
    }
  }
}

// The transform Q = [2B - I; -2VB] of an (n + extra) x n matrix [U; V], B = (I + U - Uᴴ + VᴴV)⁻¹, computed in T.
template <class T, bool complex>
class Transform {
 public:
  Transform(int64_t n, int64_t extra, bool parallel) : n_(n), extra_(extra), parallel_(parallel) {
    const int64_t square = Matrix::size(n, n), tall = extra > 0 ? Matrix::size(extra, n) : 0;
    const int64_t wide = extra > 0 ? Matrix::size(n, extra) : 0;
    vector_ = padded<T>(n + extra);
    T* memory = scratch<T, Transform>(2 * square + 2 * tall + wide + 4 * 2 * vector_);
    const auto take = [&](int64_t size) { return memory += size, memory - size; };
    inverse_.data = take(square);
    forward_.data = take(square);
    v_.data = take(tall);
    product_.data = take(tall);
    adjoint_.data = take(wide);
    vectors_ = memory;
  }

  template <class S>
  void run(const S* m) {
    load(m, n_, n_, inverse_);
    subtract_adjoint(inverse_, n_);
    add_to_diagonal(inverse_, n_, T{1});
    if (extra_ > 0) {
      load(m + n_ * n_ * Matrix::kPlanes, extra_, n_, v_);
      conjugate_transpose(v_, extra_, n_, T{1}, adjoint_);
      multiply(inverse_, adjoint_, v_, n_, n_, extra_, true, T{1}, parallel_);
    }
    std::copy_n(inverse_.data, Matrix::size(n_, n_), forward_.data);
    invert<T, complex>(part(inverse_, 0, 0), n_, parallel_);
    if (extra_ > 0) multiply(product_, v_, inverse_, extra_, n_, n_, false, T{1}, parallel_);
  }

  // ‖xᵀ(Q - Q₀)‖ / √n for the exact Q₀ of the matrix that was inverted and a vector x of signs: in the mean over such
  // vectors (squared) ‖Q - Q₀‖²_F / n. NaN where Q has a NaN.
  double error() const {
    const int64_t plane = vector_;
    T *x = vectors_, *u = x + 2 * plane, *residual = u + 2 * plane, *w = residual + 2 * plane;
    std::fill_n(x, 4 * 2 * plane, T{0});
    for (int64_t i = 0; i < n_ + extra_; ++i) x[i] = static_cast<uint64_t>(i) * kGolden >> 63 ? T{-1} : T{1};
    for (int64_t i = 0; i < n_; ++i) residual[i] = -x[i];
    add_row_combination(x, plane, inverse_, n_, u);
    if (extra_ > 0) {
      add_row_combination(x + n_, plane, product_, extra_, u);
      add_row_combination(x + n_, plane, v_, extra_, w);
      for (int64_t i = 0; i < 2 * plane; ++i) residual[i] -= w[i], w[i] = 0;
    }
    add_row_combination(u, inverse_.plane, forward_, n_, residual);  // xᵀ([B; VB] (I + A) - [I; V])
    add_row_combination(residual, inverse_.plane, inverse_, n_, w);
    double square = 0;
    for (int64_t i = 0; i < 2 * plane; ++i) square += static_cast<double>(w[i]) * w[i];
    return 2 * std::sqrt(square / static_cast<double>(n_));
  }

  // inverse is null where it is not wanted.
  template <class S>
  void write(S* q, S* inverse) const {
    store(inverse_, n_, n_, T{2}, T{-1}, q);
    if (extra_ > 0) store(product_, extra_, n_, T{-2}, T{0}, q + n_ * n_ * Matrix::kPlanes);
    if (inverse != nullptr) store(inverse_, n_, n_, T{1}, T{0}, inverse);
  }

 private:
  using Matrix = Planar<T, complex>;
  static constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

  const int64_t n_;
  const int64_t extra_;
  const bool parallel_;
  int64_t vector_;
  Matrix inverse_{nullptr, n_};  // B
  Matrix forward_{nullptr, n_};  // I + A
  Matrix v_{nullptr, n_};
  Matrix product_{nullptr, n_};  // VB
  Matrix adjoint_{nullptr, extra_};  // Vᴴ
  T* vectors_;
};

}  // namespace fastlip::cayley

// Products of planar matrices with one vector, for looks at how well an equation is solved.
#pragma once

#include <cstdint>

#include "common/gemm.h"
#include "linalg/planar.h"

namespace fastlip::linalg {

// Vectors hold all real parts, then, the matrix's `plane` after them, all imaginary parts; what fills them up is 0.
template <class T, bool complex>
int64_t vector_size(const Planar<T, complex>& matrix) {
  return matrix.kPlanes * matrix.plane;
}

// x = a vector of signs, in an order without a pattern.
template <class T>
void fill_signs(T* x, int64_t n) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<uint64_t>(i) * kGolden >> 63 ? T{-1} : T{1};
}

// y += scale A x for `rows` rows of A from row i on, whose sums go on side by side.
template <int rows, class T, bool complex>
void add_rows(const Planar<T, complex>& a, int64_t i, T scale, const T* x, T* y) {
  constexpr int lanes = kLaneCount<T>;
  const int64_t plane = a.plane;
  const T* row = a.at(i, 0);
  Lanes<T> re[rows] = {}, im[rows] = {};
  for (int64_t j = 0; j < plane; j += lanes) {
    const Lanes<T> x_re = load_lanes(x + j);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const T* at = row + r * a.row + j;
      const Lanes<T> a_re = load_lanes(at);
      re[r] += a_re * x_re;
      if constexpr (complex) {
        const Lanes<T> a_im = load_lanes(at + plane), x_im = load_lanes(x + plane + j);
        re[r] -= a_im * x_im;
        im[r] += a_re * x_im;
        im[r] += a_im * x_re;
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    T sum_re = 0, sum_im = 0;
    for (int l = 0; l < lanes; ++l) {
      sum_re += re[r][l];
      if constexpr (complex) sum_im += im[r][l];
    }
    y[i + r] += scale * sum_re;
    if constexpr (complex) y[plane + i + r] += scale * sum_im;
  }
}

// y += scale A x, the rows in order.
template <class T, bool complex>
void add_product(const Planar<T, complex>& a, int64_t n, T scale, const T* x, T* y) {
  constexpr int kTogether = 4;
  int64_t i = 0;
  for (; i + kTogether <= n; i += kTogether) add_rows<kTogether>(a, i, scale, x, y);
  for (; i < n; ++i) add_rows<1>(a, i, scale, x, y);
}

}  // namespace fastlip::linalg

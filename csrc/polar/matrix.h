// What the iterations on planar matrices share: reading and writing tall and wide ones, scales, Hermitian products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/parallel.h"
#include "linalg/combine.h"
#include "linalg/planar.h"
#include "linalg/positive.h"
#include "linalg/product.h"

namespace fastlip::polar {

using linalg::combine;
using linalg::Planar;

// Sizes of a batch's matrices as they are computed with, of which wide ones are the adjoints: rows >= columns.
struct Shape {
  int64_t rows, columns;
  bool wide;

  Shape(int64_t rows, int64_t columns)
      : rows(std::max(rows, columns)), columns(std::min(rows, columns)), wide(rows < columns) {}
};

// Rows that fill up vectors are 0: products and transposes keep what fills up rows and columns at 0 then.
template <class T, bool complex>
void clear_padding(const Planar<T, complex>& matrix, int64_t rows) {
  std::fill(matrix.at(rows, 0), matrix.at(linalg::padded<T>(rows), 0), T{0});
}

// `target` (rows x columns) from contiguous numbers; `adjoint` (columns x rows) is its adjoint afterwards.
template <class T, bool complex>
void load_both(const T* source, const Shape& shape, const Planar<T, complex>& target,
               const Planar<T, complex>& adjoint, bool parallel) {
  const auto [rows, columns, wide] = shape;
  if (wide) {
    linalg::load(source, columns, rows, adjoint);
    linalg::conjugate_transpose(adjoint, columns, rows, T{1}, target, parallel);
  } else {
    linalg::load(source, rows, columns, target);
    linalg::conjugate_transpose(target, rows, columns, T{1}, adjoint, parallel);
  }
}

// scale * source as contiguous numbers; `adjoint` is overwritten.
template <class T, bool complex>
void store_either(const Planar<T, complex>& source, const Shape& shape, T scale, const Planar<T, complex>& adjoint,
                  T* target) {
  const auto [rows, columns, wide] = shape;
  if (wide) {
    linalg::conjugate_transpose(source, rows, columns, scale, adjoint);
    linalg::store(adjoint, columns, rows, T{1}, T{0}, target);
  } else {
    linalg::store(source, rows, columns, scale, T{0}, target);
  }
}

// The largest absolute value of real and imaginary parts; NaN where one is NaN or infinite.
template <class T, bool complex>
T largest_part(const Planar<T, complex>& matrix, int64_t rows) {
  Lanes<T> largest = {}, broken = {};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < matrix.kPlanes * matrix.plane; j += kLaneCount<T>) {
      const Lanes<T> value = load_lanes(matrix.at(i, j)), size = value > -value ? value : -value;
      largest = size > largest ? size : largest;
      broken += T{0} * value;
    }
  }
  T result = 0, sum = 0;
  for (int lane = 0; lane < kLaneCount<T>; ++lane) {
    result = std::max(result, static_cast<T>(largest[lane]));
    sum += broken[lane];
  }
  return result + sum;
}

// The power of two that brings `largest` near 1; 0 where a matrix with such entries counts as zero, NaN of NaN.
template <class T>
T unit_of(T largest) {
  if (std::isnan(largest)) return largest;
  const T least = std::sqrt(std::numeric_limits<T>::min());
  return largest <= least ? T{0} : std::ldexp(T{1}, -std::ilogb(largest));
}

// A product A B that is Hermitian (sign = 1) or skew-Hermitian (sign = -1), half of it computed. C is neither A nor B.
template <class T, bool complex>
void multiply_half(const Planar<T, complex>& c, const Planar<T, complex>& a, const Planar<T, complex>& b, int64_t n,
                   int64_t length, T sign, bool parallel) {
  linalg::multiply<T, complex, true>(c, a, b, n, n, length, false, T{1}, parallel);
  linalg::mirror<T, complex>(c, n, sign, T{1}, parallel);
}

}  // namespace fastlip::polar

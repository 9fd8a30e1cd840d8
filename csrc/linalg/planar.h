// Matrices with real and imaginary parts in rows of their own, so that a vector holds neighbours of one kind.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/transpose.h"

namespace fastlip::linalg {

constexpr int64_t kShare = 64;  // rows that are worth another thread

template <class T>
constexpr int64_t padded(int64_t size) {
  return (size + kLaneCount<T> - 1) / kLaneCount<T> * kLaneCount<T>;
}

// Element (i, j) has its real part at data + i * row + j, its imaginary part `plane` behind that. The columns, and the
// rows that size() counts, fill whole vectors; what is behind the matrix is 0 or unused. An odd number of vectors in a
// row keeps rows of a power of two out of each other's cache sets.
template <class T, bool complex>
struct Planar {
  static constexpr int64_t kPlanes = complex ? 2 : 1;

  T* data;
  int64_t plane;
  int64_t row;

  Planar(T* data, int64_t columns)
      : data(data), plane(padded<T>(columns)), row((kPlanes * plane / kLaneCount<T> | 1) * kLaneCount<T>) {}

  static int64_t size(int64_t rows, int64_t columns) { return padded<T>(rows) * Planar(nullptr, columns).row; }

  T* at(int64_t i, int64_t j) const { return data + i * row + j; }
};

// From numbers row by row, (re, im) pairs where complex; S may be a narrower type than T. `step` is the distance of two
// rows, `columns` if they are contiguous.
template <class T, bool complex, class S>
void load(const S* source, int64_t rows, int64_t columns, const Planar<T, complex>& target, int64_t step) {
  constexpr int64_t kPlanes = Planar<T, complex>::kPlanes;
  for (int64_t i = 0; i < rows; ++i, source += kPlanes * step) {
    T *re = target.at(i, 0), *im = re + target.plane;
    for (int64_t j = 0; j < columns; ++j) {
      re[j] = source[kPlanes * j];
      if constexpr (complex) im[j] = source[2 * j + 1];
    }
    std::fill(re + columns, re + target.plane, T{0});
    if constexpr (complex) std::fill(im + columns, im + target.plane, T{0});
  }
  std::fill(target.at(rows, 0), target.at(padded<T>(rows), 0), T{0});
}

template <class T, bool complex, class S>
void load(const S* source, int64_t rows, int64_t columns, const Planar<T, complex>& target) {
  load(source, rows, columns, target, columns);
}

// scale * source + shift on the diagonal, row by row; `step` as for load.
template <class T, bool complex, class S>
void store(const Planar<T, complex>& source, int64_t rows, int64_t columns, T scale, T shift, S* target,
           int64_t step) {
  constexpr int64_t kPlanes = Planar<T, complex>::kPlanes;
  for (int64_t i = 0; i < rows; ++i, target += kPlanes * step) {
    const T *re = source.at(i, 0), *im = re + source.plane;
    for (int64_t j = 0; j < columns; ++j) {
      target[kPlanes * j] = static_cast<S>(scale * re[j]);
      if constexpr (complex) target[2 * j + 1] = static_cast<S>(scale * im[j]);
    }
    if (i < columns) target[kPlanes * i] = static_cast<S>(scale * re[i] + shift);
  }
}

template <class T, bool complex, class S>
void store(const Planar<T, complex>& source, int64_t rows, int64_t columns, T scale, T shift, S* target) {
  store(source, rows, columns, scale, shift, target, columns);
}

template <class T, bool complex>
void add_to_diagonal(const Planar<T, complex>& matrix, int64_t size, T value) {
  for (int64_t i = 0; i < size; ++i) *matrix.at(i, i) += value;
}

template <class T>
void load_square(const T* source, int64_t row, Lanes<T>* square) {
  for (int i = 0; i < kLaneCount<T>; ++i) square[i] = load_lanes(source + i * row);
}

template <class T>
void store_square(const Lanes<T>* square, int64_t row, T* target) {
  for (int i = 0; i < kLaneCount<T>; ++i) store_lanes<T>(target + i * row, square[i]);
}

// target = scale * sourceᴴ; source has `rows` rows and `columns` columns.
template <class T, bool complex>
void conjugate_transpose(const Planar<T, complex>& source, int64_t rows, int64_t columns, T scale,
                         const Planar<T, complex>& target, bool parallel = false) {
  constexpr int64_t lanes = kLaneCount<T>, share = kShare / lanes;
  const int64_t blocks = padded<T>(rows) / lanes;
  parallel_for(blocks, parallel ? share : blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * lanes; i < end * lanes; i += lanes) {
      for (int64_t j = 0; j < columns; j += lanes) {
        for (int64_t p = 0; p < source.kPlanes; ++p) {
          Lanes<T> square[lanes];
          load_square(source.at(i, j) + p * source.plane, source.row, square);
          transpose<T>(square);
          for (auto& value : square) value *= p == 0 ? scale : -scale;
          store_square(square, target.row, target.at(j, i) + p * target.plane);
        }
      }
    }
  });
}

// matrix -= matrixᴴ, in place.
template <class T, bool complex>
void subtract_adjoint(const Planar<T, complex>& matrix, int64_t size) {
  constexpr int64_t lanes = kLaneCount<T>;
  for (int64_t i = 0; i < size; i += lanes) {
    for (int64_t j = 0; j <= i; j += lanes) {
      for (int64_t p = 0; p < matrix.kPlanes; ++p) {
        T *lower = matrix.at(i, j) + p * matrix.plane, *upper = matrix.at(j, i) + p * matrix.plane;
        const T sign = p == 0 ? -1 : 1;
        Lanes<T> square[lanes];
        load_square(upper, matrix.row, square);
        transpose<T>(square);
        for (int l = 0; l < lanes; ++l) square[l] = load_lanes(lower + l * matrix.row) + sign * square[l];
        store_square(square, matrix.row, lower);
        if (i == j) continue;
        transpose<T>(square);
        for (auto& value : square) value *= sign;
        store_square(square, matrix.row, upper);
      }
    }
  }
}

}  // namespace fastlip::linalg

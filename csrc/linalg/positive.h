// The inverse of a Hermitian matrix whose eigenvalues are positive, from its upper half: half the work of Inverse.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/transpose.h"
#include "linalg/inverse.h"
#include "linalg/planar.h"
#include "linalg/product.h"

namespace fastlip::linalg {

// target = scale * sourceᴴ for blocks of whole vectors of two matrices; adjoints of what fills up rows too.
template <class T, bool complex>
void transpose_part(const Part<const T>& source, int64_t rows, int64_t columns, T scale, const Part<T>& target) {
  constexpr int64_t lanes = kLaneCount<T>;
  for (int64_t i = 0; i < rows; i += lanes) {
    for (int64_t j = 0; j < columns; j += lanes) {
      for (int64_t p = 0; p < (complex ? 2 : 1); ++p) {
        Lanes<T> square[lanes];
        load_square(source.data + i * source.row + j + p * source.plane, source.row, square);
        transpose<T>(square);
        for (auto& value : square) value *= p == 0 ? scale : -scale;
        store_square(square, target.row, target.data + j * target.row + i + p * target.plane);
      }
    }
  }
}

// Scales a matrix whose upper half is given; its lower half becomes `sign` times the adjoint of that.
template <class T, bool complex>
void mirror(const Planar<T, complex>& matrix, int64_t n, T sign, T scale, bool parallel) {
  constexpr int64_t lanes = kLaneCount<T>;
  parallel_jobs(padded<T>(n) / lanes, parallel, [&](int64_t block) {
    const int64_t i = block * lanes;
    for (int64_t j = 0; j <= i; j += lanes) {
      for (int64_t p = 0; p < matrix.kPlanes; ++p) {
        T* upper = matrix.at(j, i) + p * matrix.plane;
        Lanes<T> square[lanes];
        load_square(upper, matrix.row, square);
        for (auto& value : square) value *= scale;
        if (scale != T{1}) store_square(square, matrix.row, upper);
        if (i == j) continue;
        transpose<T>(square);
        for (auto& value : square) value *= p == 0 ? sign : -sign;
        store_square(square, matrix.row, matrix.at(i, j) + p * matrix.plane);
      }
    }
  });
}

// Replaces the matrix by its inverse, by sweeps: with E the inverse of the diagonal block of the rows and columns K, the
// block becomes -E, A[K, :] becomes R = E A[K, :], A[:, K] its adjoint, and every other A[i, :] loses A[i, K] R; for one K
// after another. The result is the negative inverse. No pivot vanishes, and A stays Hermitian: each sweep computes what
// stands above or in the diagonal blocks.
template <class T, bool complex>
class PositiveInverse {
 public:
  PositiveInverse(const Planar<T, complex>& matrix, int64_t size, bool parallel)
      : matrix_(matrix), size_(size), parallel_(parallel), rows_(nullptr, size), columns_(nullptr, kBlock),
        result_(nullptr, size) {}

  void run() {
    if (size_ <= kBlock) return BlockInverse<T, complex>(whole(matrix_), size_).run();
    const int64_t panels = left_panel_size<complex>(size_), wide = Matrix::size(kBlock, size_);
    T* memory = scratch<T, PositiveInverse>(2 * wide + Matrix::size(padded<T>(size_) + kBlock, kBlock) + 2 * panels +
                                            left_panel_size<complex>(kBlock));
    const auto take = [&](int64_t count) { return memory += count, memory - count; };
    rows_.data = take(wide);
    result_.data = take(wide);
    columns_.data = take(Matrix::size(padded<T>(size_) + kBlock, kBlock));
    before_ = take(panels);
    after_ = take(panels);
    inverse_ = take(left_panel_size<complex>(kBlock));
    const int64_t strips = (size_ + kStrip<T> - 1) / kStrip<T>;
    for (begin_ = 0; begin_ < size_; begin_ = end_) {
      end_ = std::min(begin_ + kBlock, size_);
      length_ = end_ - begin_;
      prepare();
      parallel_jobs(strips, parallel_, [&](int64_t strip) { update(strip * kStrip<T>); });
    }
    mirror<T, complex>(matrix_, size_, T{1}, T{-1}, parallel_);
  }

 private:
  using Matrix = Planar<T, complex>;

  // A[K, :] and its adjoint, of what stands above the diagonal, as panels; E.
  void prepare() const {
    const int64_t filled = padded<T>(length_), later = padded<T>(size_) - begin_;
    const Part<T> rows = whole(rows_), columns = whole(columns_);
    transpose_part<T, complex>(matrix_part(0, begin_), begin_, filled, T{1}, rows);
    for (int64_t i = 0; i < filled; ++i) {
      for (int64_t p = 0; p < matrix_.kPlanes; ++p) {
        std::copy_n(matrix_.at(begin_ + i, begin_) + p * matrix_.plane, later, rows_.at(i, begin_) + p * rows_.plane);
      }
    }
    transpose_part<T, complex>(Part<const T>(rows), filled, padded<T>(size_), T{1}, columns);
    BlockInverse<T, complex>(whole(matrix_).at(begin_, begin_), length_).run();
    pack_left<T, complex>(matrix_part(begin_, begin_), length_, length_, inverse_);
    pack_left<T, complex>(Part<const T>(columns), begin_, length_, before_);
    pack_left<T, complex>(Part<const T>(columns.at(end_, 0)), size_ - end_, length_, after_);
  }

  // One strip of columns.
  void update(int64_t j) const {
    const int64_t vectors = std::min(kStrip<T>, padded<T>(size_) - j) / kLaneCount<T>;
    const Part<T> result = whole(result_).at(0, j);
    const int64_t filled = padded<T>(length_), columns = vectors * kLaneCount<T>;
    T* panel = scratch<T, struct SweptRows>(kRightPanel<T, complex>);
    if (j >= begin_ && j < end_) return negate(j, columns);
    pack_right<T, complex>(Part<const T>(whole(rows_).at(0, j)), length_, vectors, panel);
    multiply_panels<T, complex>(result, length_, vectors, inverse_, panel, length_, kAll<T>, T{1});
    pack_right<T, complex>(Part<const T>(result), length_, vectors, panel);
    for (int64_t i = length_; i < filled; ++i) {
      for (int64_t p = 0; p < matrix_.kPlanes; ++p) std::fill_n(result_.at(i, j) + p * result_.plane, columns, T{0});
    }
    const int64_t last = std::min(size_, (j / kBlock + 1) * kBlock);  // of the rows that are wanted
    const Part<T> target = whole(matrix_);
    const int64_t before = std::min(begin_, last);
    multiply_panels<T, complex>(target.at(0, j), before, vectors, before_, panel, length_, kNone, T{-1});
    if (j < begin_) {
      transpose_part<T, complex>(Part<const T>(result), filled, columns, T{1}, target.at(j, begin_));
      return;
    }
    multiply_panels<T, complex>(target.at(end_, j), last - end_, vectors, after_, panel, length_, kNone, T{-1});
    for (int64_t i = 0; i < length_; ++i) {
      for (int64_t p = 0; p < matrix_.kPlanes; ++p) {
        std::copy_n(result_.at(i, j) + p * result_.plane, columns, matrix_.at(begin_ + i, j) + p * matrix_.plane);
      }
    }
  }

  void negate(int64_t j, int64_t columns) const {
    for (int64_t i = begin_; i < end_; ++i) {
      for (int64_t p = 0; p < matrix_.kPlanes; ++p) {
        T* at = matrix_.at(i, j) + p * matrix_.plane;
        for (int64_t l = 0; l < columns; ++l) at[l] = -at[l];
      }
    }
  }

  Part<const T> matrix_part(int64_t i, int64_t j) const { return whole(matrix_).at(i, j); }

  const Matrix matrix_;
  const int64_t size_;
  const bool parallel_;
  Matrix rows_;  // A[K, :]
  Matrix columns_;  // its adjoint
  Matrix result_;  // R
  int64_t begin_ = 0;  // of K
  int64_t end_ = 0;
  int64_t length_ = 0;
  T* before_ = nullptr;  // panels of A[i, K] for the rows before K, and for those after it
  T* after_ = nullptr;
  T* inverse_ = nullptr;  // of E
};

}  // namespace fastlip::linalg

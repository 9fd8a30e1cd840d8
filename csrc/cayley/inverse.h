// The inverse of a matrix whose Hermitian part is at least I: no pivot vanishes. In place, block by block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cayley/planar.h"
#include "cayley/product.h"
#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace fastlip::cayley {

constexpr int64_t kBlock = 32;

template <class T>
using LaneIndex = Lanes<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

// row -= row[k] * pivot on `vectors` vectors, where row[k] counts as 0 on the left: pivot[k] is the reciprocal.
template <class T, bool complex>
inline void eliminate(const T* pivot, T* row, int64_t plane, int64_t vectors, int64_t k, LaneIndex<T> lane) {
  constexpr int lanes = kLaneCount<T>;
  const T re = row[k], im = complex ? row[plane + k] : T{0};
  const Lanes<T> zero = {};
  for (int64_t v = 0; v < vectors; ++v, lane += lanes) {
    const Lanes<T> p_re = load_lanes(pivot + v * lanes), x_re = load_lanes(row + v * lanes);
    Lanes<T> y_re = (lane == 0 ? zero : x_re) - re * p_re;
    if constexpr (complex) {
      const Lanes<T> p_im = load_lanes(pivot + plane + v * lanes), x_im = load_lanes(row + plane + v * lanes);
      const Lanes<T> y_im = (lane == 0 ? zero : x_im) - re * p_im;
      y_re += im * p_im;
      store_lanes<T>(row + plane + v * lanes, y_im - im * p_re);
    }
    store_lanes<T>(row + v * lanes, y_re);
  }
}

// Divides the row by its k-th element, in whose place stands its reciprocal.
template <class T, bool complex>
inline void divide_by_pivot(T* row, int64_t plane, int64_t vectors, int64_t k, LaneIndex<T> lane) {
  constexpr int lanes = kLaneCount<T>;
  const Lanes<T> zero = {}, one = zero + T{1};
  const T a = row[k], b = complex ? row[plane + k] : T{0};
  const T square = a * a + b * b, re = complex ? a / square : 1 / a, im = -b / square;
  for (int64_t v = 0; v < vectors; ++v, lane += lanes) {
    const Lanes<T> value = load_lanes(row + v * lanes), x_re = lane == 0 ? one : value;
    if constexpr (complex) {
      const Lanes<T> imaginary = load_lanes(row + plane + v * lanes), x_im = lane == 0 ? zero : imaginary;
      store_lanes<T>(row + v * lanes, re * x_re - im * x_im);
      store_lanes<T>(row + plane + v * lanes, re * x_im + im * x_re);
    } else {
      store_lanes<T>(row + v * lanes, re * x_re);
    }
  }
}

// Gauss-Jordan elimination in place, for a block of at most kBlock rows.
template <class T, bool complex>
void invert_block(const Part<T>& block, int64_t size) {
  const int64_t vectors = padded<T>(size) / kLaneCount<T>;
  LaneIndex<T> lane;
  for (int i = 0; i < kLaneCount<T>; ++i) lane[i] = i;
  for (int64_t k = 0; k < size; ++k, lane -= 1) {
    T* pivot = block.data + k * block.row;
    divide_by_pivot<T, complex>(pivot, block.plane, vectors, k, lane);
    // The next pivot's row comes first: its division starts while the other rows are updated.
    for (int64_t i = k + 1; i < size; ++i) {
      eliminate<T, complex>(pivot, block.data + i * block.row, block.plane, vectors, k, lane);
    }
    for (int64_t i = 0; i < k; ++i) {
      eliminate<T, complex>(pivot, block.data + i * block.row, block.plane, vectors, k, lane);
    }
  }
}

// Replaces a matrix by its inverse. With E the inverse of the diagonal block of the rows and columns K, the rows of K
// become R = E A[K, :], and every other row A[i, :] - A[i, K] R, where A[:, K] counts as 0 and A[K, K] as I.
template <class T, bool complex>
class Inverse {
 public:
  Inverse(const Planar<T, complex>& matrix, int64_t size, bool parallel)
      : matrix_(matrix), size_(size), parallel_(parallel) {}

  void run() {
    const int64_t strips = (size_ + kStrip<T> - 1) / kStrip<T>;
    for (begin_ = 0; begin_ < size_; begin_ = end_) {
      end_ = std::min(begin_ + kBlock, size_);
      invert_block<T, complex>(part(matrix_, begin_, begin_), end_ - begin_);
      parallel_jobs(strips, parallel_, [&](int64_t strip) {
        const int64_t j = strip * kStrip<T>;
        if (j < begin_ || j >= end_) update_strip(j);
      });
      update_block_columns(0, begin_);
      update_block_columns(end_, size_);
    }
  }

 private:
  int64_t vectors(int64_t j) const { return std::min(kStrip<T>, matrix_.plane - j) / kLaneCount<T>; }

  void update_strip(int64_t j) const {
    const int64_t length = end_ - begin_;
    const Part<T> rows{scratch<T, struct PivotRows>(kBlock * 2 * kStrip<T>), 2 * kStrip<T>, kStrip<T>};
    copy(begin_, length, j, vectors(j) * kLaneCount<T>, rows);
    const Part<T> pivots = part(matrix_, begin_, j);
    multiply_rows<T, complex>(length, vectors(j), pivots, part(matrix_, begin_, begin_), rows, length, false, T{1});
    for (const auto& [begin, end] : {std::pair{int64_t{0}, begin_}, std::pair{end_, size_}}) {
      multiply_rows<T, complex>(end - begin, vectors(j), part(matrix_, begin, j), part(matrix_, begin, begin_), pivots,
                                length, true, T{-1});
    }
  }

  // A[i, K] = -A[i, K] E for the rows [begin, end).
  void update_block_columns(int64_t begin, int64_t end) const {
    const int64_t length = end_ - begin_;
    alignas(64) T memory[kTileRows<complex> * 2 * kBlock];
    const Part<T> rows{memory, 2 * kBlock, kBlock};
    for (int64_t i = begin; i < end; i += kTileRows<complex>) {
      const int64_t count = std::min(kTileRows<complex>, end - i);
      copy(i, count, begin_, length, rows);
      for (int64_t j = begin_; j < end_; j += kStrip<T>) {
        multiply_tile<T, complex>(count, vectors(j), part(matrix_, i, j), rows, part(matrix_, begin_, j), length, false,
                                  T{-1});
      }
    }
  }

  // Copies the part of `rows` rows and `columns` columns that begins at (i, j).
  void copy(int64_t i, int64_t rows, int64_t j, int64_t columns, const Part<T>& target) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t p = 0; p < matrix_.kPlanes; ++p) {
        std::copy_n(matrix_.at(i + r, j) + p * matrix_.plane, columns, target.data + r * target.row + p * target.plane);
      }
    }
  }

  const Planar<T, complex>& matrix_;
  const int64_t size_;
  const bool parallel_;
  int64_t begin_ = 0;  // of K
  int64_t end_ = 0;
};

}  // namespace fastlip::cayley

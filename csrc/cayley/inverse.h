// The inverse of a matrix whose Hermitian part is at least I: no pivot vanishes. In place, block by block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cayley/planar.h"
#include "cayley/product.h"
#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace fastlip::cayley {

constexpr int64_t kSmallBlock = 32;
constexpr int64_t kLargeBlock = 64;
constexpr int64_t kLargeFrom = 64;

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

// Gauss-Jordan elimination in place for a block of at most kSmallBlock rows, by kPivots rows at a time: these first, then the
// others, in which what the pivots' columns held counts as 0 once it has been multiplied.
template <class T, bool complex>
class BlockInverse {
 public:
  BlockInverse(const Part<T>& block, int64_t size) : block_(block), size_(size), vectors_(padded<T>(size) / kLanes) {}

  void run() const {
    for (int64_t k = 0; k < size_; k += kPivots) {
      const int64_t end = std::min(k + kPivots, size_);
      eliminate_pivots(k, end);
      // The next pivots come first: their divisions start while other rows are updated.
      update_rows(end, size_, k, end);
      update_rows(0, k, k, end);
    }
  }

 private:
  static constexpr int64_t kPivots = std::min<int64_t>(8, kStrip<T>);
  static constexpr int64_t kLanes = kLaneCount<T>;

  void eliminate_pivots(int64_t begin, int64_t end) const {
    LaneIndex<T> lane = lane_index<T>(-begin);
    for (int64_t k = begin; k < end; ++k, lane -= 1) {
      T* pivot = block_.at(k, 0).data;
      divide_by_pivot<T, complex>(pivot, block_.plane, vectors_, k, lane);
      for (int64_t i = begin; i < end; ++i) {
        if (i != k) eliminate<T, complex>(pivot, block_.at(i, 0).data, block_.plane, vectors_, k, lane);
      }
    }
  }

  // The strip that holds the pivots' columns comes last: it overwrites the factors.
  void update_rows(int64_t first, int64_t last, int64_t begin, int64_t end) const {
    for (int64_t i = first; i < last; i += kTileRows<complex>) {
      const int64_t rows = std::min(kTileRows<complex>, last - i);
      for (int64_t j = 0; j < size_; j += kStrip<T>) {
        if (begin < j || begin >= j + kStrip<T>) update_tile(i, rows, j, begin, end);
      }
      update_tile(i, rows, begin / kStrip<T> * kStrip<T>, begin, end);
    }
  }

  void update_tile(int64_t i, int64_t rows, int64_t j, int64_t begin, int64_t end) const {
    const int64_t vectors = std::min<int64_t>(kPanelVectors, vectors_ - j / kLanes);
    multiply_tile<T, complex>(rows, vectors, block_.at(i, j), block_.at(i, begin), block_.at(begin, j), end - begin,
                              Cleared{begin - j, end - j}, T{-1});
  }

  const Part<T> block_;
  const int64_t size_;
  const int64_t vectors_;
};

template <class T, bool complex>
void invert(const Part<T>& matrix, int64_t size, bool parallel);

// With E the inverse of the diagonal block of the rows and columns K, the rows of K become R = E A[K, :], and every other
// row A[i, :] - A[i, K] R, where A[:, K] counts as 0 and A[K, K] as I; for one block K after another.
template <class T, bool complex>
class Inverse {
 public:
  Inverse(const Part<T>& matrix, int64_t size, int64_t block, bool parallel)
      : matrix_(matrix), size_(size), block_(block), parallel_(parallel) {}

  void run() {
    const int64_t strips = (size_ + kStrip<T> - 1) / kStrip<T>;
    for (begin_ = 0; begin_ < size_; begin_ = end_) {
      end_ = std::min(begin_ + block_, size_);
      invert<T, complex>(matrix_.at(begin_, begin_), end_ - begin_, false);
      parallel_jobs(strips, parallel_, [&](int64_t strip) {
        const int64_t j = strip * kStrip<T>;
        if (j < begin_ || j >= end_) update_strip(j);
      });
      update_block_columns(0, begin_);
      update_block_columns(end_, size_);
    }
  }

 private:
  int64_t vectors(int64_t j) const { return std::min(kStrip<T>, padded<T>(size_) - j) / kLaneCount<T>; }

  void update_strip(int64_t j) const {
    const int64_t length = end_ - begin_;
    const Part<T> rows{scratch<T, struct PivotRows>(kLargeBlock * 2 * kStrip<T>), 2 * kStrip<T>, kStrip<T>};
    copy(matrix_.at(begin_, j), length, vectors(j) * kLaneCount<T>, rows);
    const Part<T> pivots = matrix_.at(begin_, j);
    multiply_rows<T, complex>(length, vectors(j), pivots, matrix_.at(begin_, begin_), rows, length, kAll<T>, T{1});
    for (const auto& [begin, end] : {std::pair{int64_t{0}, begin_}, std::pair{end_, size_}}) {
      multiply_rows<T, complex>(end - begin, vectors(j), matrix_.at(begin, j), matrix_.at(begin, begin_), pivots, length,
                                kNone, T{-1});
    }
  }

  // A[i, K] = -A[i, K] E for the rows [begin, end).
  void update_block_columns(int64_t begin, int64_t end) const {
    const int64_t length = end_ - begin_;
    alignas(64) T memory[kTileRows<complex> * 2 * kLargeBlock];
    const Part<T> rows{memory, 2 * kLargeBlock, kLargeBlock};
    for (int64_t i = begin; i < end; i += kTileRows<complex>) {
      const int64_t count = std::min(kTileRows<complex>, end - i);
      copy(matrix_.at(i, begin_), count, length, rows);
      for (int64_t j = begin_; j < end_; j += kStrip<T>) {
        multiply_tile<T, complex>(count, vectors(j), matrix_.at(i, j), rows, matrix_.at(begin_, j), length, kAll<T>,
                                  T{-1});
      }
    }
  }

  static void copy(const Part<T>& source, int64_t rows, int64_t columns, const Part<T>& target) {
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(source.data + i * source.row, columns, target.data + i * target.row);
      if constexpr (!complex) continue;
      std::copy_n(source.data + i * source.row + source.plane, columns, target.data + i * target.row + target.plane);
    }
  }

  const Part<T> matrix_;
  const int64_t size_;
  const int64_t block_;
  const bool parallel_;
  int64_t begin_ = 0;  // of K
  int64_t end_ = 0;
};

// Replaces a matrix by its inverse. Each block is a pass over the matrix: large ones where it exceeds the near cache.
template <class T, bool complex>
void invert(const Part<T>& matrix, int64_t size, bool parallel) {
  if (size <= kSmallBlock) {
    BlockInverse<T, complex>(matrix, size).run();
  } else {
    Inverse<T, complex>(matrix, size, size > kLargeFrom ? kLargeBlock : kSmallBlock, parallel).run();
  }
}

}  // namespace fastlip::cayley

// The inverse of a matrix whose Hermitian part is at least I: no pivot vanishes. In place, block by block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "linalg/planar.h"
#include "linalg/product.h"

namespace fastlip::linalg {

constexpr int64_t kBlock = kMaxLength;

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

// Gauss-Jordan elimination in place for a block of at most kBlock rows, by kPivots rows at a time: these first, then the
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
    const Part<T> block = block_;  // as a local variable it stays in registers: no store can change it
    const int64_t vectors = vectors_;
    LaneIndex<T> lane = lane_index<T>(-begin);
    for (int64_t k = begin; k < end; ++k, lane -= 1) {
      T* pivot = block.at(k, 0).data;
      divide_by_pivot<T, complex>(pivot, block.plane, vectors, k, lane);
      for (int64_t i = begin; i < end; ++i) {
        if (i != k) eliminate<T, complex>(pivot, block.at(i, 0).data, block.plane, vectors, k, lane);
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
    multiply_in_place<T, complex>(rows, vectors, block_.at(i, j), block_.at(i, begin), block_.at(begin, j),
                                  end - begin, Cleared{begin - j, end - j}, T{-1});
  }

  const Part<T> block_;
  const int64_t size_;
  const int64_t vectors_;
};

// Replaces a matrix by its inverse. With E the inverse of the diagonal block of the rows and columns K, the rows of K
// become R = E A[K, :], and every other
// row A[i, :] - A[i, K] R, where A[:, K] counts as 0 and A[K, K] as I; for one block K after another.
template <class T, bool complex>
class Inverse {
 public:
  Inverse(const Part<T>& matrix, int64_t size, bool parallel) : matrix_(matrix), size_(size), parallel_(parallel) {}

  void run() {
    const int64_t strips = (size_ + kStrip<T> - 1) / kStrip<T>;
    const int64_t size = left_panel_size<complex>(size_), block = left_panel_size<complex>(kBlock);
    before_ = scratch<T, struct Factors>(2 * size + block);
    behind_ = before_ + size;
    inverse_ = behind_ + size;
    for (begin_ = 0; begin_ < size_; begin_ = end_) {
      end_ = std::min(begin_ + kBlock, size_);
      length_ = end_ - begin_;
      BlockInverse<T, complex>(matrix_.at(begin_, begin_), length_).run();
      if (length_ == size_) return;
      pack_left<T, complex>(matrix_.at(0, begin_), begin_, length_, before_);
      pack_left<T, complex>(matrix_.at(end_, begin_), size_ - end_, length_, behind_);
      pack_left<T, complex>(matrix_.at(begin_, begin_), length_, length_, inverse_);
      parallel_jobs(strips, parallel_, [&](int64_t strip) { update(strip * kStrip<T>); });
    }
  }

 private:
  // One strip of columns.
  void update(int64_t j) const {
    const int64_t vectors = std::min(kStrip<T>, padded<T>(size_) - j) / kLaneCount<T>;
    const bool inside = j >= begin_ && j < end_;
    const Part<T> pivots = matrix_.at(begin_, j);
    T* panel = scratch<T, struct PivotRows>(kRightPanel<T, complex>);
    if (!inside) {
      pack_right<T, complex>(pivots, length_, vectors, panel);
      multiply_panels<T, complex>(pivots, length_, vectors, inverse_, panel, length_, kAll<T>, T{1});
    }
    pack_right<T, complex>(pivots, length_, vectors, panel);
    const Cleared cleared = inside ? kAll<T> : kNone;
    multiply_panels<T, complex>(matrix_.at(0, j), begin_, vectors, before_, panel, length_, cleared, T{-1});
    multiply_panels<T, complex>(matrix_.at(end_, j), size_ - end_, vectors, behind_, panel, length_, cleared, T{-1});
  }

  const Part<T> matrix_;
  const int64_t size_;
  const bool parallel_;
  int64_t begin_ = 0;  // of K
  int64_t end_ = 0;
  int64_t length_ = 0;
  T* before_ = nullptr;  // panels of A[i, K] for the rows before K, and for those behind
  T* behind_ = nullptr;
  T* inverse_ = nullptr;  // of E
};

}  // namespace fastlip::linalg

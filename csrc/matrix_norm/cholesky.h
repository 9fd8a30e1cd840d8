// The Cholesky factor of a real matrix, block by block: whether it is positive definite, and where it is not.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "linalg/planar.h"
#include "linalg/product.h"

namespace fastlip::matrix_norm {

using linalg::Planar;

// A = RᵀR with R upper triangular, in place of the upper half of A; the lower half is neither read nor written, but for
// what fills up vectors. With K the rows of a block, those of R follow by elimination, and what is below them is reduced
// by R[K, :]ᵀ R[K, :].
template <class T>
class Cholesky {
 public:
  Cholesky(const Planar<T, false>& matrix, int64_t size, bool parallel)
      : matrix_(matrix), size_(size), parallel_(parallel) {}

  // The row of the first pivot that is not positive, or no number; the size where there is none.
  int64_t run() const {
    const int64_t strips = (size_ + kStrip - 1) / kStrip;
    const int64_t size = linalg::left_panel_size<false>(size_);
    T* memory = scratch<T, struct CholeskyFactors>(size + Matrix::size(size_, kBlock));
    Matrix transposed(memory + size, kBlock);
    for (int64_t begin = 0; begin < size_; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, size_);
      if (const int64_t row = eliminate(begin, end); row < end) return row;
      if (end == size_) break;
      transpose_rows(begin, end, transposed);
      linalg::pack_left<T, false>(linalg::whole(transposed), size_ - end, end - begin, memory);
      parallel_jobs(strips - end / kStrip, parallel_,
                    [&](int64_t strip) { reduce((end / kStrip + strip) * kStrip, begin, end, memory); });
    }
    return size_;
  }

  // x with xᵀAx equal to the pivot of that row: (-R⁻¹ r, 1, 0), with R the factor before the row and r what is above the
  // pivot.
  void direction(int64_t row, T* x) const {
    std::fill_n(x, matrix_.plane, T{0});
    x[row] = 1;
    for (int64_t i = row - 1; i >= 0; --i) {
      const T* r = matrix_.at(i, 0);
      double sum = 0;
      for (int64_t j = i + 1; j <= row; ++j) sum += static_cast<double>(r[j]) * x[j];
      x[i] = -sum / r[i];
    }
  }

 private:
  using Matrix = Planar<T, false>;
  static constexpr int64_t kBlock = linalg::kMaxLength;
  static constexpr int64_t kStrip = linalg::kStrip<T>;
  static constexpr int64_t kLanes = kLaneCount<T>;

  // The rows of R of one block, up to the row that it returns: the end, or that of a pivot that is not positive.
  int64_t eliminate(int64_t begin, int64_t end) const {
    for (int64_t k = begin; k < end; ++k) {
      T* pivot = matrix_.at(k, 0);
      if (!(pivot[k] > 0) || !(pivot[k] <= std::numeric_limits<T>::max())) return k;
      const T scale = 1 / std::sqrt(pivot[k]);
      const int64_t first = k / kLanes * kLanes;
      for (int64_t j = first; j < matrix_.plane; j += kLanes) store_lanes<T>(pivot + j, scale * load_lanes(pivot + j));
      for (int64_t i = k + 1; i < end; ++i) {
        T* row = matrix_.at(i, 0);
        const T factor = pivot[i];
        for (int64_t j = i / kLanes * kLanes; j < matrix_.plane; j += kLanes) {
          store_lanes<T>(row + j, load_lanes(row + j) - factor * load_lanes(pivot + j));
        }
      }
    }
    return end;
  }

  // target = R[K, end:]ᵀ.
  void transpose_rows(int64_t begin, int64_t end, const Matrix& target) const {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = matrix_.at(i, 0);
      for (int64_t j = end; j < size_; ++j) *target.at(j - end, i - begin) = row[j];
    }
  }

  // The rows behind K, of one strip of columns, down to its diagonal.
  void reduce(int64_t j, int64_t begin, int64_t end, const T* left) const {
    const int64_t vectors = std::min(kStrip, matrix_.plane - j) / kLanes;
    T* right = scratch<T, struct CholeskyPanel>(linalg::kRightPanel<T, false>);
    const auto matrix = linalg::whole(matrix_);
    linalg::pack_right<T, false>(matrix.at(begin, j), end - begin, vectors, right);
    linalg::multiply_panels<T, false>(matrix.at(end, j), std::min(size_, j + kStrip) - end, vectors, left, right,
                                      end - begin, linalg::kNone, T{-1});
  }

  const Matrix matrix_;
  const int64_t size_;
  const bool parallel_;
};

}  // namespace fastlip::matrix_norm

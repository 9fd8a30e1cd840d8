// The Cholesky factor of a real matrix, block by block: whether it is positive definite.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

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

  // False where a pivot is not positive, or no number.
  bool run() const {
    const int64_t strips = (size_ + kStrip - 1) / kStrip;
    const int64_t size = linalg::left_panel_size<false>(size_);
    T* memory = scratch<T, struct CholeskyFactors>(size + Matrix::size(size_, kBlock));
    Matrix transposed(memory + size, kBlock);
    for (int64_t begin = 0; begin < size_; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, size_);
      if (!eliminate(begin, end)) return false;
      if (end == size_) break;
      transpose_rows(begin, end, transposed);
      linalg::pack_left<T, false>(linalg::whole(transposed), size_ - end, end - begin, memory);
      parallel_jobs(strips - end / kStrip, parallel_,
                    [&](int64_t strip) { reduce((end / kStrip + strip) * kStrip, begin, end, memory); });
    }
    return true;
  }

 private:
  using Matrix = Planar<T, false>;
  static constexpr int64_t kBlock = linalg::kMaxLength;
  static constexpr int64_t kStrip = linalg::kStrip<T>;
  static constexpr int64_t kLanes = kLaneCount<T>;

  // The rows of R of one block.
  bool eliminate(int64_t begin, int64_t end) const {
    for (int64_t k = begin; k < end; ++k) {
      T* pivot = matrix_.at(k, 0);
      if (!(pivot[k] > 0) || !(pivot[k] <= std::numeric_limits<T>::max())) return false;
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
    return true;
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

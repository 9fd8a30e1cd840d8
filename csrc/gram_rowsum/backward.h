// The gradients for weight and ψ, from the signs that the forward kept.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gram_rowsum/geometry.h"
#include "gram_rowsum/pack.h"
#include "gram_rowsum/psi.h"
#include "gram_rowsum/signed.h"

namespace fastlip::gram_rowsum {

template <class T>
class Backward {
 public:
  Backward(const T* gradient, const T* weight, const T* psi, const uint32_t* signs, T* weight_gradient,
           const Geometry& geometry, const Strides& stride, const Strides& gradient_stride)
      : gradient_(gradient), weight_(weight), psi_(psi), signs_(signs), weight_gradient_(weight_gradient),
        geometry_(geometry), stride_(stride), gradient_stride_(gradient_stride),
        side_(square_side(geometry, kSquareElements)), rows_(panel_rows(geometry, kPanelElements)),
        blocks_((geometry.outputs + rows_ - 1) / rows_), overlaps_(Overlaps::by_tap(geometry, rows_)),
        for_psi_(psi, weight, geometry, stride, rows_) {}

  void run() {
    const int64_t bands = (geometry_.tiles + side_ - 1) / side_, per_group = bands * blocks_;
    parallel_jobs(geometry_.groups * per_group, geometry_.is_large(), [&](int64_t job) {
      band(job / per_group, job % per_group / blocks_, job % blocks_);
    });
  }

  void psi_gradient(const T* r, T* target) const { for_psi_.store(gradient_, r, target); }

 private:
  static constexpr int64_t kPanelElements = 20 * 1024;
  static constexpr int64_t kSquareElements = 16 * 1024;

  // The gradient of side_ tiles of input channels and one block of output channels.
  void band(int64_t group, int64_t band, int64_t block) {
    const int64_t first = block * rows_, count = std::min(rows_, geometry_.outputs - first);
    const int64_t size = geometry_.taps * rows_ * kTile;
    const int64_t begin = band * side_, end = std::min(geometry_.tiles, begin + side_);
    T* panel = scratch<T, struct BackwardPanels>((side_ + 1) * size);
    T* factors = scratch<T, struct BackwardFactors>(geometry_.offsets * kTileSize);
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output;
    for (int64_t j = 0; j < geometry_.tiles; ++j) {
      pack(source + j * kTile * stride_.channel, stride_, geometry_.width(j), count, rows_, panel);
      for (int64_t i = begin; i < end; ++i) {
        signed_factors(gradient_, psi_, signs_, geometry_, group, i, j, factors);
        for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
          multiply<T, kTile, 1>(panel + (1 + i - begin) * size + tap * rows_ * kTile, panel, factors, overlaps_, tap,
                                geometry_.width(j), count, geometry_.width(i), j > 0);
        }
      }
    }
    T* target = weight_gradient_ + (group * geometry_.outputs + first) * gradient_stride_.output;
    for (int64_t i = begin; i < end; ++i) {
      const T* result = panel + (1 + i - begin) * size;
      unpack(result, gradient_stride_, geometry_.width(i), count, rows_, target + i * kTile * gradient_stride_.channel);
      for_psi_.add(group, i, block, result, panel);
    }
  }

  const T* gradient_;
  const T* weight_;
  const T* psi_;
  const uint32_t* signs_;
  T* weight_gradient_;
  const Geometry& geometry_;
  const Strides& stride_;
  const Strides& gradient_stride_;
  int64_t side_;
  int64_t rows_;
  int64_t blocks_;
  Overlaps overlaps_;
  PsiGradient<T> for_psi_;
};

}  // namespace fastlip::gram_rowsum

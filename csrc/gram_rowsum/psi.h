// The gradient for ψ, from the gradient for the weight.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gram_rowsum/geometry.h"
#include "gram_rowsum/pack.h"

namespace fastlip::gram_rowsum {

// ψ̄_k = Σ_i A_ik E_ik - r̄_k r_k, and Σ_{o,τ} W̄ ∘ W = Σ_j A_kj (E_kj + E_jk), where Σ_j A_kj E_kj = r̄_k r_k. The
// terms cancel, so they are summed in double. A channel that is alone in its group does not depend on ψ.
template <class T>
class PsiGradient {
 public:
  PsiGradient(const T* psi, const T* weight, const Geometry& geometry, const Strides& stride, int64_t rows)
      : weight_(weight), geometry_(geometry), stride_(stride), rows_(rows),
        blocks_(psi == nullptr ? 0 : (geometry.outputs + rows - 1) / rows),
        dots_(blocks_ * geometry.groups * geometry.channels) {}

  // Adds W̄ ∘ W for one tile and one block of output channels; `result` is W̄ as a panel, `scratch` is as large.
  void add(int64_t group, int64_t i, int64_t block, const T* result, T* scratch) {
    if (blocks_ == 0) return;
    const int64_t first = block * rows_, count = std::min(rows_, geometry_.outputs - first), width = geometry_.width(i);
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output + i * kTile * stride_.channel;
    double* dot = dots_.data() + (block * geometry_.groups + group) * geometry_.channels + i * kTile;
    pack(source, stride_, width, count, rows_, scratch);
    for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
      for (int64_t at = tap * rows_ * kTile; at < (tap * rows_ + count) * kTile; at += kTile) {
        for (int64_t k = 0; k < width; ++k) dot[k] += static_cast<double>(scratch[at + k]) * result[at + k];
      }
    }
  }

  void store(const T* gradient, const T* r, T* target) const {
    const int64_t channels = geometry_.groups * geometry_.channels;
    for (int64_t k = 0; k < channels && blocks_ > 0; ++k) {
      double sum = -2.0 * gradient[k] * r[k];
      for (int64_t b = 0; b < blocks_; ++b) sum += dots_[b * channels + k];
      target[k] = geometry_.channels == 1 ? T{0} : static_cast<T>(sum);
    }
  }

 private:
  const T* weight_;
  const Geometry& geometry_;
  const Strides& stride_;
  int64_t rows_;
  int64_t blocks_;  // 0 without ψ
  std::vector<double> dots_;
};

}  // namespace fastlip::gram_rowsum

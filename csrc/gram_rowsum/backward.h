// The gradients for weight and ψ, from the signs that the forward kept.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gram_rowsum/geometry.h"
#include "gram_rowsum/pack.h"
#include "gram_rowsum/tile.h"

namespace fastlip::gram_rowsum {

template <class T>
class Backward {
 public:
  Backward(const T* gradient, const T* weight, const T* psi, const uint32_t* signs, T* weight_gradient,
           const Geometry& geometry, const Strides& stride, const Strides& gradient_stride)
      : gradient_(gradient), weight_(weight), psi_(psi), signs_(signs), weight_gradient_(weight_gradient),
        geometry_(geometry), stride_(stride), gradient_stride_(gradient_stride),
        side_(square_side(geometry, kSquareElements)), rows_(panel_rows(geometry, kPanelElements)),
        overlaps_(Overlaps::by_tap(geometry, rows_)) {
    blocks_ = (geometry.outputs + rows_ - 1) / rows_;
    if (psi != nullptr) dots_.resize(blocks_ * geometry.groups * geometry.channels);
  }

  void run() {
    const int64_t bands = (geometry_.tiles + side_ - 1) / side_, per_group = bands * blocks_;
    parallel_jobs(geometry_.groups * per_group, geometry_.is_large(), [&](int64_t job) {
      band(job / per_group, job % per_group / blocks_, job % blocks_);
    });
  }

  // ψ̄_k = Σ_i A_ik E_ik - r̄_k r_k, and Σ_{o,τ} W̄ ∘ W = Σ_j A_kj (E_kj + E_jk), where Σ_j A_kj E_kj = r̄_k r_k. The
  // terms cancel, so they are summed in double. A channel that is alone in its group does not depend on ψ.
  void psi_gradient(const T* r, T* target) const {
    const int64_t channels = geometry_.groups * geometry_.channels;
    for (int64_t k = 0; k < channels; ++k) {
      double sum = -2.0 * gradient_[k] * r[k];
      for (int64_t b = 0; b < blocks_; ++b) sum += dots_[b * channels + k];
      target[k] = geometry_.channels == 1 ? T{0} : static_cast<T>(sum);
    }
  }

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
        signed_factors(group, i, j, factors);
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
      if (psi_ == nullptr) continue;
      pack(source + i * kTile * stride_.channel, stride_, geometry_.width(i), count, rows_, panel);
      double* dot = dots_.data() + (block * geometry_.groups + group) * geometry_.channels + i * kTile;
      add_products(panel, result, count, geometry_.width(i), dot);
    }
  }

  // Adds Σ_{o,τ} of the products of two panels to each channel.
  void add_products(const T* a, const T* b, int64_t count, int64_t width, double* dot) const {
    for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
      for (int64_t at = tap * rows_ * kTile; at < (tap * rows_ + count) * kTile; at += kTile) {
        for (int64_t k = 0; k < width; ++k) dot[k] += static_cast<double>(a[at + k]) * b[at + k];
      }
    }
  }

  // factors[δ][j][i] = sign(v[i,j,δ]) (E_ij + E_ji).
  void signed_factors(int64_t group, int64_t i, int64_t j, T* factors) const {
    const int64_t rows = geometry_.width(j), columns = geometry_.width(i), base = group * geometry_.channels;
    T factor[kTileSize];
    const TileVector<T> gradient_i(gradient_ + base + i * kTile, columns), gradient_j(gradient_ + base + j * kTile, rows);
    const TileVector<T> psi_i(psi_ == nullptr ? psi_ : psi_ + base + i * kTile, columns);
    const TileVector<T> psi_j(psi_ == nullptr ? psi_ : psi_ + base + j * kTile, rows);
    gradient_factor(gradient_i.value, gradient_j.value, psi_ == nullptr ? nullptr : &psi_i, &psi_j, rows, columns,
                    factor);
    const uint32_t* words = signs_ + geometry_.sign_begin(group, std::min(i, j), std::max(i, j));
    const int64_t planes = geometry_.width(std::min(i, j)), first = geometry_.first_offset(i == j);
    for (int64_t offset = 0; offset < geometry_.offsets; ++offset) {
      const int64_t opposite = geometry_.offsets - 1 - offset;
      const bool transposed = i < j || (i == j && offset >= first);  // whether v[i,j,δ] was kept, or v[j,i,-δ]
      const uint32_t* plane = words + ((transposed ? offset : opposite) - first) * 2 * planes;
      T* target = factors + offset * kTileSize;
      if (transposed) {
        apply_signs<T, true>(factor, plane, planes, rows, columns, target);
      } else {
        apply_signs<T, false>(factor, plane, planes, rows, columns, target);
      }
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
  int64_t blocks_ = 0;
  Overlaps overlaps_;
  std::vector<double> dots_;
};

}  // namespace fastlip::gram_rowsum

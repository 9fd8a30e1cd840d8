// The gradient of 3 x 3 kernels by the products of valid.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gram_rowsum/geometry.h"
#include "gram_rowsum/pack.h"
#include "gram_rowsum/psi.h"
#include "gram_rowsum/signed.h"
#include "gram_rowsum/spread.h"
#include "gram_rowsum/valid.h"

namespace fastlip::gram_rowsum {

// Works on bands of input channels and, for each, on bands of output channels, whose values fit into a cache.
template <class T>
class BackwardByPoints {
 public:
  BackwardByPoints(const T* gradient, const T* weight, const T* psi, const uint32_t* signs, T* weight_gradient,
                   const Geometry& geometry, const Strides& stride, const Strides& gradient_stride)
      : gradient_(gradient), weight_(weight), psi_(psi), signs_(signs), weight_gradient_(weight_gradient), geometry_(geometry),
        stride_(stride), gradient_stride_(gradient_stride), factor_panel_(geometry.tiles * kTileSize),
        weight_panel_(geometry.tiles * kRows * kTile), blocks_((geometry.outputs + kRows - 1) / kRows),
        band_(std::clamp<int64_t>(kBandElements / (kValuePanels * factor_panel_), 1, geometry.tiles)),
        block_band_(std::clamp<int64_t>(kBandElements / (kValuePanels * weight_panel_), 1, blocks_)),
        for_psi_(psi, weight, geometry, stride, kRows) {
    for (int64_t j = 0; j < geometry.tiles; ++j) {
      if (j % kRun == 0) products_.begin.push_back(j);
      products_.pairs.push_back({j * kRows * kTile, j * kTileSize});
    }
    products_.begin.push_back(geometry.tiles);
  }

  void run() {
    const int64_t size = band_ * factor_panel_ + block_band_ * weight_panel_ + band_ * block_band_ * kRows * kTile;
    T* factors = scratch<T, Points>(kValuePanels * size);
    T* weights = factors + kValuePanels * band_ * factor_panel_;
    T* values = weights + kValuePanels * block_band_ * weight_panel_;
    const bool large = geometry_.is_large();
    for (int64_t group = 0; group < geometry_.groups; ++group) {
      for (int64_t first = 0; first < geometry_.tiles; first += band_) {
        const int64_t tiles = std::min(band_, geometry_.tiles - first);
        parallel_jobs(tiles * geometry_.tiles, large, [&](int64_t job) {
          const int64_t i = job / geometry_.tiles, j = job % geometry_.tiles;
          factor_tile(group, first + i, j, factors + i * kValuePanels * factor_panel_ + j * kTileSize);
        });
        for (int64_t begin = 0; begin < blocks_; begin += block_band_) {
          const int64_t blocks = std::min(block_band_, blocks_ - begin);
          parallel_jobs(blocks * geometry_.tiles, large, [&](int64_t job) {
            const int64_t block = job / geometry_.tiles, j = job % geometry_.tiles;
            weight_tile(group, begin + block, j, weights + block * kValuePanels * weight_panel_ + j * kRows * kTile);
          });
          // One value after another, whose panels stay in cache.
          parallel_jobs(kValuePanels * tiles, large, [&](int64_t job) {
            const int64_t n = job / tiles, i = job % tiles;
            for (int64_t block = 0; block < blocks; ++block) {
              multiply_tile(first + i, begin + block, factors + (i * kValuePanels + n) * factor_panel_,
                            weights + (block * kValuePanels + n) * weight_panel_,
                            values + ((i * blocks + block) * kValuePanels + n) * kRows * kTile);
            }
          });
          parallel_jobs(tiles * blocks, large, [&](int64_t job) {
            gradient_tile(group, first + job / blocks, begin + job % blocks, values + job * kValuePanels * kRows * kTile);
          });
        }
      }
    }
  }

  void psi_gradient(const T* r, T* target) const { for_psi_.store(gradient_, r, target); }

 private:
  static constexpr int64_t kBandElements = 1 << 22;
  static constexpr int64_t kRows = 32;  // output channels of a block
  static constexpr int64_t kRun = 8;    // tiles of channels that are summed in registers

  void factor_tile(int64_t group, int64_t i, int64_t j, T* target) const {
    T* factors = scratch<T, struct PointTile>(kValuePanels * kTileSize);
    const int64_t filled = geometry_.width(j) * kTile;
    signed_factors(gradient_, psi_, signs_, geometry_, group, i, j, factors);
    transform_panels<T, 5, 5>(factors, kTileSize, target, factor_panel_, filled, values_of_factors<Lanes<T>>);
    for (int64_t n = 0; n < kValuePanels; ++n) {
      std::fill(target + n * factor_panel_ + filled, target + n * factor_panel_ + kTileSize, T{0});
    }
  }

  void weight_tile(int64_t group, int64_t block, int64_t j, T* target) const {
    T* taps = scratch<T, struct PointTaps>(geometry_.taps * kRows * kTile);
    const int64_t first = block * kRows, count = std::min(kRows, geometry_.outputs - first);
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output + j * kTile * stride_.channel;
    pack(source, stride_, geometry_.width(j), count, kRows, taps);
    transform_panels<T, 3, 5>(taps, kRows * kTile, target, weight_panel_, round_up(count, kPanelRows) * kTile,
                              values_of_weights<Lanes<T>>);
  }

  void multiply_tile(int64_t i, int64_t block, const T* factors, const T* weights, T* values) const {
    const int64_t count = std::min(kRows, geometry_.outputs - block * kRows);
    const int64_t lists = static_cast<int64_t>(products_.begin.size()) - 1;
    for (int64_t list = 0; list < lists; ++list) {
      multiply<T, kTile, 1>(values, weights, factors, products_, list, kTile, count, geometry_.width(i), list > 0);
    }
  }

  void gradient_tile(int64_t group, int64_t i, int64_t block, const T* values) {
    const int64_t size = geometry_.taps * kRows * kTile;
    T* taps = scratch<T, struct PointTaps>(2 * size);
    const int64_t first = block * kRows, count = std::min(kRows, geometry_.outputs - first);
    transform_panels<T, 5, 3>(values, kRows * kTile, taps, kRows * kTile, count * kTile, taps_of_values<Lanes<T>>);
    T* target = weight_gradient_ + (group * geometry_.outputs + first) * gradient_stride_.output;
    unpack(taps, gradient_stride_, geometry_.width(i), count, kRows, target + i * kTile * gradient_stride_.channel);
    for_psi_.add(group, i, block, taps, taps + size);
  }

  const T* gradient_;
  const T* weight_;
  const T* psi_;
  const uint32_t* signs_;
  T* weight_gradient_;
  const Geometry& geometry_;
  const Strides& stride_;
  const Strides& gradient_stride_;
  int64_t factor_panel_;
  int64_t weight_panel_;
  int64_t blocks_;
  int64_t band_;        // tiles of input channels
  int64_t block_band_;  // blocks of output channels
  Overlaps products_;
  PsiGradient<T> for_psi_;
};

}  // namespace fastlip::gram_rowsum

// The gradient of 3 x 3 kernels by the products of valid.h.
#pragma once

#include <algorithm>
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

// Works on bands of input channels i and of blocks of output channels; each sums over chunks of input channels j, for
// which the values of weights and factors fit into a cache.
template <class T>
class BackwardByPoints {
 public:
  BackwardByPoints(const T* gradient, const T* weight, const T* psi, const uint32_t* signs, T* weight_gradient,
                   const Geometry& geometry, const Strides& stride, const Strides& gradient_stride)
      : gradient_(gradient), weight_(weight), psi_(psi), signs_(signs), weight_gradient_(weight_gradient),
        geometry_(geometry), stride_(stride), gradient_stride_(gradient_stride),
        blocks_((geometry.outputs + kRows - 1) / kRows), for_psi_(psi, weight, geometry, stride, kRows) {
    for (int64_t count = 1; count <= kChunk; ++count) {  // list n sums the first n + 1 tiles of a chunk
      products_.begin.push_back(static_cast<int64_t>(products_.pairs.size()));
      for (int64_t j = 0; j < count; ++j) products_.pairs.push_back({j * kRows * kTile, j * kTileSize});
    }
    products_.begin.push_back(static_cast<int64_t>(products_.pairs.size()));
  }

  void run() {
    constexpr int64_t size = kBand * kFactors + kBlocks * kWeights + kBand * kBlocks * kTileSize;
    T* factors = scratch<T, Points>(kValuePanels * size);
    T* weights = factors + kValuePanels * kBand * kFactors;
    T* values = weights + kValuePanels * kBlocks * kWeights;
    for (int64_t group = 0; group < geometry_.groups; ++group) {
      for (int64_t i = 0; i < geometry_.tiles; i += kBand) {
        for (int64_t block = 0; block < blocks_; block += kBlocks) {
          for (int64_t j = 0; j < geometry_.tiles; j += kChunk) {
            evaluate(group, i, block, j, factors, weights);
            multiply_chunk(i, block, j, factors, weights, values);
          }
          store_gradient(group, i, block, values);
        }
      }
    }
  }

  void psi_gradient(const T* r, T* target) const { for_psi_.store(gradient_, r, target); }

 private:
  static constexpr int64_t kRows = kTile;  // output channels of a block
  static constexpr int64_t kBand = 2;      // tiles of input channels i
  static constexpr int64_t kBlocks = 4;
  static constexpr int64_t kChunk = 4;  // tiles of input channels j, which are summed in registers
  static constexpr int64_t kFactors = kChunk * kTileSize, kWeights = kChunk * kRows * kTile;

  int64_t band(int64_t i) const { return std::min(kBand, geometry_.tiles - i); }
  int64_t blocks(int64_t block) const { return std::min(kBlocks, blocks_ - block); }
  int64_t chunk(int64_t j) const { return std::min(kChunk, geometry_.tiles - j); }
  int64_t outputs(int64_t block) const { return std::min(kRows, geometry_.outputs - block * kRows); }

  void evaluate(int64_t group, int64_t i, int64_t block, int64_t j, T* factors, T* weights) const {
    const int64_t tiles = chunk(j), factor_tiles = band(i) * tiles;
    parallel_jobs(factor_tiles + blocks(block) * tiles, geometry_.is_large(), [&](int64_t job) {
      const int64_t tile = job % tiles;  // of the chunk, for both kinds of jobs
      if (job < factor_tiles) {
        const int64_t place = job / tiles;
        factor_tile(group, i + place, j + tile, factors + kValuePanels * place * kFactors + tile * kTileSize);
      } else {
        const int64_t place = (job - factor_tiles) / tiles;
        weight_tile(group, block + place, j + tile, weights + kValuePanels * place * kWeights + tile * kRows * kTile);
      }
    });
  }

  void factor_tile(int64_t group, int64_t i, int64_t j, T* target) const {
    T* factors = scratch<T, struct PointTile>(kValuePanels * kTileSize);
    const int64_t filled = geometry_.width(j) * kTile;
    signed_factors(gradient_, psi_, signs_, geometry_, group, i, j, factors);
    transform_panels<T, 5, 5>(factors, kTileSize, target, kFactors, filled, values_of_factors<Lanes<T>>);
    for (int64_t n = 0; n < kValuePanels; ++n) {
      std::fill(target + n * kFactors + filled, target + n * kFactors + kTileSize, T{0});
    }
  }

  void weight_tile(int64_t group, int64_t block, int64_t j, T* target) const {
    T* taps = scratch<T, struct PointTaps>(geometry_.taps * kRows * kTile);
    const int64_t count = outputs(block);
    const T* source = weight_ + (group * geometry_.outputs + block * kRows) * stride_.output;
    pack(source + j * kTile * stride_.channel, stride_, geometry_.width(j), count, kRows, taps);
    transform_panels<T, 3, 5>(taps, kRows * kTile, target, kWeights, round_up(count, kPanelRows) * kTile,
                              values_of_weights<Lanes<T>>);
  }

  // Adds a chunk to the values of the gradient; one value after another, so that its panels stay in cache.
  void multiply_chunk(int64_t i, int64_t block, int64_t j, const T* factors, const T* weights, T* values) const {
    const int64_t tiles = band(i), rows = blocks(block), list = chunk(j) - 1;
    parallel_jobs(kValuePanels * tiles, geometry_.is_large(), [&](int64_t job) {
      const int64_t n = job / tiles, at = job % tiles;
      for (int64_t row = 0; row < rows; ++row) {
        multiply<T, kTile, 1>(values + ((at * rows + row) * kValuePanels + n) * kTileSize,
                              weights + (row * kValuePanels + n) * kWeights,
                              factors + (at * kValuePanels + n) * kFactors, products_, list, kTile,
                              outputs(block + row), geometry_.width(i + at), j > 0);
      }
    });
  }

  void store_gradient(int64_t group, int64_t i, int64_t block, const T* values) {
    const int64_t rows = blocks(block), size = geometry_.taps * kRows * kTile;
    parallel_jobs(band(i) * rows, geometry_.is_large(), [&](int64_t job) {
      const int64_t tile = i + job / rows, at = block + job % rows, count = outputs(at);
      T* taps = scratch<T, struct PointTaps>(2 * size);
      transform_panels<T, 5, 3>(values + job * kValuePanels * kTileSize, kTileSize, taps, kRows * kTile, count * kTile,
                                taps_of_values<Lanes<T>>);
      const int64_t begin = (group * geometry_.outputs + at * kRows) * gradient_stride_.output;
      unpack(taps, gradient_stride_, geometry_.width(tile), count, kRows,
             weight_gradient_ + begin + tile * kTile * gradient_stride_.channel);
      for_psi_.add(group, tile, at, taps, taps + size);
    });
  }

  const T* gradient_;
  const T* weight_;
  const T* psi_;
  const uint32_t* signs_;
  T* weight_gradient_;
  const Geometry& geometry_;
  const Strides& stride_;
  const Strides& gradient_stride_;
  int64_t blocks_;
  Overlaps products_;
  PsiGradient<T> for_psi_;
};

}  // namespace fastlip::gram_rowsum

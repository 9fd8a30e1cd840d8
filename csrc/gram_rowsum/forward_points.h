// Row sums and signs of 3 x 3 kernels by the products of points.h.
//
// Where rounding could decide the sign of a v, it is summed tap by tap instead, and where that happens often in a tile,
// the whole tile is.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gram_rowsum/forward.h"
#include "gram_rowsum/points.h"
#include "gram_rowsum/spread.h"

namespace fastlip::gram_rowsum {

template <class T>
class ForwardByPoints {
 public:
  ForwardByPoints(const T* weight, const Spread<T>& spread, uint32_t* signs, const Geometry& geometry,
                  const Strides& stride, Forward<T>& tap_by_tap)
      : weight_(weight), signs_(signs), geometry_(geometry), stride_(stride), tap_by_tap_(tap_by_tap),
        band_(std::min(kBand, geometry.tiles)), limit_(geometry.groups * geometry.tiles * kTile, T{-1}) {
    const T rounding = kRoundings * std::numeric_limits<T>::epsilon();
    for (int64_t group = 0; group < geometry.groups; ++group) {
      for (int64_t i = 0; i < geometry.channels; ++i) {
        const T energy = spread.energy()[group * geometry.channels + i];
        limit_[group * geometry.tiles * kTile + i] = std::sqrt(rounding * energy);
      }
    }
    constexpr ProductTable table = product_table();
    for (int n = 0; n < kProducts; ++n) {
      const SumPair pair = table.pairs[n < kSymmetric + kOthers ? n : n - kOthers];
      const bool swapped = n >= kSymmetric + kOthers;
      const int64_t left = pair.left * kRows * kTile, right = pair.right * kRows * kTile;
      products_.begin.push_back(n);
      products_.pairs.push_back(swapped ? PanelPair{right, left} : PanelPair{left, right});
    }
    products_.begin.push_back(kProducts);
  }

  void run() {
    T* left = scratch<T, Points>(2 * band_ * kPanel + band_ * band_ * kProducts * kTileSize);
    T* products = left + 2 * band_ * kPanel;
    for (int64_t group = 0; group < geometry_.groups; ++group) {
      for (int64_t i = 0; i < geometry_.tiles; i += band_) {
        for (int64_t j = i; j < geometry_.tiles; j += band_) {
          T* right = i == j ? left : left + band_ * kPanel;
          for (int64_t first = 0; first < geometry_.outputs; first += kRows) {
            expand_band(group, i, first, left);
            if (i != j) expand_band(group, j, first, right);
            multiply_bands(i, j, first, left, right, products);
          }
          reduce_bands(group, i, j, products);
        }
      }
    }
    tap_by_tap_.add_partial_sums();
  }

 private:
  static constexpr int64_t kBand = 4;   // tiles whose panels are expanded at once, and
  static constexpr int64_t kRows = 32;  // their outputs
  static constexpr int64_t kPanel = kSumPanels * kRows * kTile;
  static constexpr int64_t kRoundings = 4;  // of sqrt(energy_i energy_j): below that many a sign is not certain
  static constexpr int64_t kDirect = 64;    // sums tap by tap, from which on the tile is done so

  // The sums of the taps of a band of tiles and some outputs.
  void expand_band(int64_t group, int64_t begin, int64_t first, T* panels) const {
    const int64_t tiles = std::min(band_, geometry_.tiles - begin), count = std::min(kRows, geometry_.outputs - first);
    parallel_jobs(tiles, geometry_.is_large(), [&](int64_t tile) {
      T* taps = scratch<T, struct PointTaps>(geometry_.taps * kRows * kTile);
      const int64_t i = begin + tile, row = group * geometry_.outputs + first;
      const T* source = weight_ + row * stride_.output + i * kTile * stride_.channel;
      pack(source, stride_, geometry_.width(i), count, kRows, taps);
      expand(taps, kRows, count, panels + tile * kPanel);
    });
  }

  // Adds some outputs to the products of two bands; one product after another, so that its panels stay in cache.
  void multiply_bands(int64_t begin_i, int64_t begin_j, int64_t first, const T* left, const T* right,
                      T* products) const {
    const int64_t rows = std::min(band_, geometry_.tiles - begin_i);
    const int64_t columns = std::min(band_, geometry_.tiles - begin_j);
    const int64_t length = std::min(kRows, geometry_.outputs - first);
    const bool same = begin_i == begin_j;
    parallel_jobs(kProducts * rows, geometry_.is_large(), [&](int64_t job) {
      const int64_t n = job / rows, i = job % rows;
      for (int64_t j = same ? i : 0; j < columns; ++j) {
        if (same && i == j && n >= kSymmetric + kOthers) continue;
        multiply<T, 1, kTile>(products + ((i * band_ + j) * kProducts + n) * kTileSize, left + i * kPanel,
                              right + j * kPanel, products_, n, length, kTile, kTile, first > 0);
      }
    });
  }

  void reduce_bands(int64_t group, int64_t begin_i, int64_t begin_j, T* products) {
    parallel_jobs(band_ * band_, geometry_.is_large(), [&](int64_t job) {
      const int64_t i = begin_i + job / band_, j = begin_j + job % band_;
      if (i > j || j >= geometry_.tiles || i >= geometry_.tiles) return;
      T* tile = products + job * kProducts * kTileSize;
      const bool done = i == j ? reduce_tile<true>(group, i, j, tile) : reduce_tile<false>(group, i, j, tile);
      if (!done) tap_by_tap_.square(group, i, j, 1);
    });
  }

  static void transpose_tile(const T* source, T* target) {
    constexpr int64_t lanes = kLaneCount<T>;
    for (int64_t i = 0; i < kTile; i += lanes) {
      for (int64_t j = 0; j < kTile; j += lanes) {
        Lanes<T> square[lanes];
        for (int64_t n = 0; n < lanes; ++n) square[n] = load_lanes(source + (i + n) * kTile + j);
        transpose<T>(square);
        for (int64_t n = 0; n < lanes; ++n) store_lanes<T>(target + (j + n) * kTile + i, square[n]);
      }
    }
  }

  // Signs and sums of a tile; false if too many of its signs are uncertain.
  template <bool diagonal>
  bool reduce_tile(int64_t group, int64_t i, int64_t j, T* products) {
    constexpr int lanes = kLaneCount<T>, begin = diagonal ? kLags / 2 : 0;
    for (int64_t n = kSymmetric; n < kSymmetric + kOthers && diagonal; ++n) {
      transpose_tile(products + n * kTileSize, products + (n + kOthers) * kTileSize);
    }
    const int64_t rows = geometry_.width(i), columns = geometry_.width(j);
    T sums[kTileSize] = {}, center[kTileSize] = {};
    uint32_t* words = signs_ + geometry_.sign_begin(group, i, j);
    const T* limit_i = limit_.data() + (group * geometry_.tiles + i) * kTile;
    const T* limit_j = limit_.data() + (group * geometry_.tiles + j) * kTile;
    int64_t direct = 0;
    for (int64_t row = 0; row < rows; ++row) {
      uint32_t bits[2][kLags] = {};
      for (int64_t column = 0; column < columns; column += lanes) {
        const int64_t at = row * kTile + column;
        const Lanes<T> limit = limit_i[row] * load_lanes(limit_j + column);
        Lanes<T> lags[kLags];
        lags_of(products, at, lags);
        Lanes<T> least = absolute<T>(lags[begin]);
#pragma GCC unroll 25
        for (int lag = begin + 1; lag < kLags; ++lag) {
          const Lanes<T> size = absolute<T>(lags[lag]);
          least = size < least ? size : least;
        }
        if (const uint32_t close = signs_of(limit - least).positive) {
          direct += sum_tap_by_tap(group, i * kTile + row, j * kTile + column, close, begin, limit, lags);
          if (direct > kDirect) return false;
        }
        Lanes<T> sum = {};
#pragma GCC unroll 25
        for (int lag = begin; lag < kLags; ++lag) {
          const Signs sign = signs_of(lags[lag]);
          bits[0][lag] |= sign.positive << column;
          bits[1][lag] |= sign.negative << column;
          if (!diagonal || lag > begin) sum += absolute<T>(lags[lag]);
        }
        store_lanes<T>(sums + at, sum);
        if (diagonal) store_lanes<T>(center + at, absolute<T>(lags[begin]));
      }
      for (int lag = begin; lag < kLags; ++lag) {
        uint32_t* word = words + (lag - begin) * 2 * rows + row;
        word[0] = bits[0][lag];
        word[rows] = bits[1][lag];
      }
    }
    tap_by_tap_.add_tile(group, i, j, sums, center);
    return true;
  }

  // Replaces the v below the limit, in the lanes that `close` names, by sums in double precision; how many these are.
  int64_t sum_tap_by_tap(int64_t group, int64_t i, int64_t j, uint32_t close, int begin, Lanes<T> limit,
                         Lanes<T>* lags) const {
    int64_t count = 0;
    for (int lane = 0; lane < kLaneCount<T>; ++lane) {
      for (int lag = begin; lag < kLags && (close >> lane & 1) != 0; ++lag) {
        if (!(std::abs(lags[lag][lane]) < limit[lane])) continue;
        if (++count > kDirect) return count;
        lags[lag][lane] = single(group, i, j + lane, lag);
      }
    }
    return count;
  }

  T single(int64_t group, int64_t i, int64_t j, int64_t lag) const {
    const int64_t down = lag / 5 - 2, right = lag % 5 - 2;
    const T* base = weight_ + group * geometry_.outputs * stride_.output;
    double sum = 0;
    for (int64_t o = 0; o < geometry_.outputs; ++o, base += stride_.output) {
      for (int64_t y = std::max<int64_t>(0, -down); y < std::min<int64_t>(3, 3 - down); ++y) {
        for (int64_t x = std::max<int64_t>(0, -right); x < std::min<int64_t>(3, 3 - right); ++x) {
          const T left = base[i * stride_.channel + stride_.tap[3 * y + x]];
          sum += static_cast<double>(left) * base[j * stride_.channel + stride_.tap[3 * (y + down) + x + right]];
        }
      }
    }
    return static_cast<T>(sum);
  }

  const T* weight_;
  uint32_t* signs_;
  const Geometry& geometry_;
  const Strides& stride_;
  Forward<T>& tap_by_tap_;
  int64_t band_;
  std::vector<T> limit_;  // of each channel; a product of two bounds |v| from below, negative where there is no channel
  Overlaps products_;
};

}  // namespace fastlip::gram_rowsum

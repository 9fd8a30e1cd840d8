// How gram_rowsum divides its work: taps, offsets, tiles of channels, panels, and where each tile keeps its signs.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "common/gemm.h"

namespace fastlip::gram_rowsum {

constexpr int64_t kTile = 32;  // channels per tile; the sign planes have one bit per channel of a 32-bit word
constexpr int64_t kTileSize = kTile * kTile;

using Sizes = std::array<int64_t, 3>;  // depth, height, width

// Strides of a (cout, cin / groups, depth, height, width) weight, in elements.
struct Strides {
  int64_t output;
  int64_t channel;
  std::vector<int64_t> tap;

  Strides(int64_t output, int64_t channel, Sizes kernel, Sizes stride) : output(output), channel(channel) {
    tap.reserve(kernel[0] * kernel[1] * kernel[2]);
    for (int64_t d = 0; d < kernel[0]; ++d) {
      for (int64_t h = 0; h < kernel[1]; ++h) {
        for (int64_t w = 0; w < kernel[2]; ++w) tap.push_back(d * stride[0] + h * stride[1] + w * stride[2]);
      }
    }
  }
};

struct Geometry {
  int64_t groups;
  int64_t outputs;   // per group
  int64_t channels;  // input channels per group
  Sizes kernel;
  int64_t taps = kernel[0] * kernel[1] * kernel[2];
  int64_t offsets = (2 * kernel[0] - 1) * (2 * kernel[1] - 1) * (2 * kernel[2] - 1);
  int64_t tiles = (channels + kTile - 1) / kTile;

  // Offsets are numbered lexicographically: -δ is offsets - 1 - δ, zero is in the middle. v[j,i,-δ] = v[i,j,δ], so
  // a tile on the diagonal needs only those from the middle on.
  int64_t first_offset(bool diagonal) const { return diagonal ? offsets / 2 : 0; }
  int64_t width(int64_t tile) const { return std::min(kTile, channels - tile * kTile); }

  // Cost of a pass in vector instructions, roughly: below some 33 000 a second thread does not pay.
  bool is_large() const { return groups * tiles * tiles * taps * taps * (outputs + 8) * 16 > 33000; }

  // Words of the sign planes of the tile (i, j), i <= j, as [offset][positive, negative][row i], and where they begin.
  int64_t sign_words(int64_t i, int64_t j) const { return (offsets - first_offset(i == j)) * 2 * width(i); }
  int64_t sign_begin(int64_t group, int64_t i, int64_t j) const {
    const int64_t diagonal = (offsets + 1) / 2 * 2 * kTile, other = offsets * 2 * kTile;
    const int64_t last = tiles - 1, before = i * diagonal + (i * last - i * (i - 1) / 2) * other;
    const int64_t per_group = last * diagonal + last * (last + 1) / 2 * other + sign_words(last, last);
    return group * per_group + before + (j == i ? 0 : diagonal + (j - i - 1) * other);
  }
};

// Panels hold `rows` output channels of one tile as [tap][row][kTile].
struct Overlaps {
  std::vector<PanelPair> pairs;
  std::vector<int64_t> begin;  // the pairs of list n are begin[n] to begin[n + 1]

  // For each offset δ, the taps (τ, τ + δ) that overlap; both panels are weights.
  static Overlaps by_offset(const Geometry& geometry, int64_t rows) {
    Overlaps result;
    result.pairs.reserve(geometry.taps * geometry.taps);
    result.begin.reserve(geometry.offsets + 1);
    const auto [depth, height, width] = geometry.kernel;
    const int64_t panel = rows * kTile;
    for (int64_t d = 1 - depth; d < depth; ++d) {
      for (int64_t h = 1 - height; h < height; ++h) {
        for (int64_t w = 1 - width; w < width; ++w) {
          result.begin.push_back(static_cast<int64_t>(result.pairs.size()));
          const int64_t shift = ((d * height + h) * width + w) * panel;
          for (int64_t z = std::max<int64_t>(0, -d); z < std::min(depth, depth - d); ++z) {
            for (int64_t y = std::max<int64_t>(0, -h); y < std::min(height, height - h); ++y) {
              for (int64_t x = std::max<int64_t>(0, -w); x < std::min(width, width - w); ++x) {
                const int64_t tap = ((z * height + y) * width + x) * panel;
                result.pairs.push_back({tap, tap + shift});
              }
            }
          }
        }
      }
    }
    result.begin.push_back(static_cast<int64_t>(result.pairs.size()));
    return result;
  }

  // For each tap τ, every tap σ of the weights with the offset σ - τ of the tiles of v.
  static Overlaps by_tap(const Geometry& geometry, int64_t rows) {
    Overlaps result;
    result.pairs.reserve(geometry.taps * geometry.taps);
    std::vector<int64_t> number;  // differences of numbers are offsets, up to a constant
    const auto [depth, height, width] = geometry.kernel;
    for (int64_t z = 0; z < depth; ++z) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) number.push_back((z * (2 * height - 1) + y) * (2 * width - 1) + x);
      }
    }
    for (int64_t tap = 0; tap < geometry.taps; ++tap) {
      result.begin.push_back(tap * geometry.taps);
      for (int64_t other = 0; other < geometry.taps; ++other) {
        const int64_t offset = number[other] - number[tap] + geometry.offsets / 2;
        result.pairs.push_back({other * rows * kTile, offset * kTileSize});
      }
    }
    result.begin.push_back(geometry.taps * geometry.taps);
    return result;
  }
};

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Output channels per panel: panels of all taps stay within a budget of the cache, in whole blocks of rows.
inline int64_t panel_rows(const Geometry& geometry, int64_t elements) {
  const int64_t rows = elements / (geometry.taps * kTile) / kPanelRows * kPanelRows;
  return std::clamp<int64_t>(rows, kPanelRows, round_up(geometry.outputs, kPanelRows));
}

// Tiles per side of the squares that share panels: the offsets of one square stay in cache, and there are jobs enough.
inline int64_t square_side(const Geometry& geometry, int64_t elements) {
  int64_t side = 1;
  while (side < 4 && 8 * side <= geometry.tiles && 4 * side * side * geometry.offsets * kTileSize <= elements) side *= 2;
  return side;
}

// C (rows x columns of a tile) (+)= the sum of the products of a list of panels; see multiply_panels.
template <class T, int64_t row, int64_t step>
void multiply(T* c, const T* a, const T* b, const Overlaps& overlaps, int64_t list, int64_t length, int64_t rows,
              int64_t columns, bool add) {
  constexpr int64_t lanes = kLaneCount<T>;
  const PanelPair* pairs = overlaps.pairs.data() + overlaps.begin[list];
  const int64_t count = overlaps.begin[list + 1] - overlaps.begin[list];
  for (int64_t r = 0; r < rows; r += kPanelRows) {
    for (int64_t j = 0; j < columns; j += kPanelVectors * lanes) {
      T* target = c + r * kTile + j;
      if (columns - j > lanes) {
        multiply_panels<T, kPanelVectors, row, step, kTile>(target, a + r * row, b + j, pairs, count, length, add);
      } else {
        multiply_panels<T, 1, row, step, kTile>(target, a + r * row, b + j, pairs, count, length, add);
      }
    }
  }
}

}  // namespace fastlip::gram_rowsum

// How images are cut into tiles, and the transformed tiles of a block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/transpose.h"
#include "winograd/transform.h"

namespace fastlip::winograd {

// Channels that lie next to each other in a block: as many as the columns of a panel.
template <class T>
constexpr int64_t kWide = kPanelVectors * kLaneCount<T>;

inline int64_t parts(int64_t size, int64_t of) { return (size + of - 1) / of; }

// Results of batch × height × width pixels, which depend on images of image_height × image_width pixels: the patch of a
// result begins `top` pixels above it and `left` pixels before it. What lies outside an image is 0.
struct Tiling {
  int64_t batch, height, width;
  int64_t image_height, image_width, top, left;

  int64_t rows() const { return parts(height, kTile); }
  int64_t columns() const { return parts(width, kTile); }
  int64_t count() const { return batch * rows() * columns(); }
};

// A square of pixels of one image: those inside it are [top, bottom) × [left, right).
struct Square {
  int64_t origin;  // of the square in the array of pixels; may lie outside
  int64_t top, bottom, left, right;
};

inline Square square(int64_t image, int64_t y, int64_t x, int64_t side, int64_t height, int64_t width) {
  const auto inside = [&](int64_t first, int64_t size) { return std::clamp<int64_t>(size - first, 0, side); };
  return {(image * height + y) * width + x, std::max<int64_t>(0, -y), inside(y, height), std::max<int64_t>(0, -x),
          inside(x, width)};
}

// The tiles one after the other, without a division for each.
class Position {
 public:
  Position(const Tiling& tiling, int64_t tile)
      : tiling_(tiling),
        image_(tile / tiling.columns() / tiling.rows()),
        y_(tile / tiling.columns() % tiling.rows() * kTile),
        x_(tile % tiling.columns() * kTile) {}

  Square patch() const {
    return square(image_, y_ - tiling_.top, x_ - tiling_.left, kPatch, tiling_.image_height, tiling_.image_width);
  }
  Square tile() const { return square(image_, y_, x_, kTile, tiling_.height, tiling_.width); }

  void advance() {
    if ((x_ += kTile) < tiling_.width) return;
    x_ = 0;
    if ((y_ += kTile) < tiling_.height) return;
    y_ = 0;
    ++image_;
  }

 private:
  const Tiling& tiling_;
  int64_t image_, y_, x_;
};

// Transformed tiles of a block as [product][kWide channels][tile][channel]. Products are one vector further apart than
// they need, since strides of powers of two would use few sets of a cache.
template <class T>
struct Block {
  T* data;
  int64_t channels, tiles;

  static int64_t size(int64_t channels, int64_t tiles) { return kProducts * stride(channels, tiles); }
  static int64_t stride(int64_t channels, int64_t tiles) {
    return parts(channels, kWide<T>) * tiles * kWide<T> + kLaneCount<T>;
  }
  int64_t stride() const { return stride(channels, tiles); }
  int64_t groups() const { return parts(channels, kWide<T>); }
  // Channels of a group, and the vectors that they fill.
  int64_t width(int64_t group) const { return std::min(kWide<T>, channels - group * kWide<T>); }
  int64_t vectors(int64_t group) const { return parts(width(group), kLaneCount<T>); }
  T* at(int64_t product, int64_t group, int64_t tile) const {
    return data + product * stride() + (group * tiles + tile) * kWide<T>;
  }
};

// Calls visit(first channel, number of lanes in use, where that vector of the tile lies) for each vector of channels.
template <class T, class Visit>
inline void for_vectors(const Block<T>& block, int64_t tile, const Visit& visit) {
  for (int64_t c = 0; c < block.channels; c += kLaneCount<T>) {
    const int64_t used = std::min<int64_t>(kLaneCount<T>, block.channels - c);
    visit(c, used, block.at(0, c / kWide<T>, tile) + c % kWide<T>);
  }
}

// One column of a square of pixels: the first `used` lanes of each, and 0 outside the image. What is `ahead` in memory
// comes nearer.
template <class T, int64_t side, bool full>
[[gnu::always_inline]] inline void load_column(const T* column, const Square& s, int64_t row, int64_t used,
                                               int64_t ahead, Lanes<T> (&pixels)[side]) {
#pragma GCC unroll 6
  for (int64_t y = 0; y < side; ++y) {
    pixels[y] = Lanes<T>{};
    __builtin_prefetch(column + y * row + ahead);
    if (y >= s.top && y < s.bottom) pixels[y] = full ? load_lanes(column + y * row) : load_first(column + y * row, used);
  }
}

// Writes the transform of side × side pixels, first along columns, then along rows: Bᵀ d B, or A e Aᵀ. `row` numbers
// separate two rows of an image, `stride` two products of the result.
template <class T, int64_t side, bool full, class Transform>
[[gnu::always_inline]] inline void transform_vector(const T* images, const Square& s, int64_t row, int64_t channels,
                                                    int64_t used, T* target, int64_t stride,
                                                    const Transform& transform) {
  using V = Lanes<T>;
  V half[kPatch][side];
  for (int64_t x = 0; x < side; ++x) {
    V found[kPatch] = {};
    if (x >= s.left && x < s.right) {
      V pixels[side];
      load_column<T, side, full>(images + x * channels, s, row, used, 2 * kTile * channels, pixels);
      transform(pixels, found);
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < kPatch; ++i) half[i][x] = found[i];
  }
  for (int64_t i = 0; i < kPatch; ++i, target += kPatch * stride) {
    V found[kPatch];
    transform(half[i], found);
#pragma GCC unroll 6
    for (int64_t j = 0; j < kPatch; ++j) store_lanes<T>(target + j * stride, found[j]);
  }
}

template <class T, int64_t side, class Transform>
inline void transform_square(const T* images, const Square& s, const Block<T>& block, int64_t tile, int64_t width,
                             const Transform& transform) {
  const int64_t channels = block.channels, row = width * channels, stride = block.stride();
  const T* origin = images + s.origin * channels;
  for_vectors<T>(block, tile, [&](int64_t c, int64_t used, T* target) {
    if (used == kLaneCount<T>) {
      transform_vector<T, side, true>(origin + c, s, row, channels, used, target, stride, transform);
    } else {
      transform_vector<T, side, false>(origin + c, s, row, channels, used, target, stride, transform);
    }
  });
}

template <class T>
inline void transform_patch(const T* images, const Tiling& tiling, const Position& position, const Block<T>& block,
                            int64_t tile) {
  const auto transform = [](const auto& d, auto& t) __attribute__((always_inline)) { of_patch(d, t); };
  transform_square<T, kPatch>(images, position.patch(), block, tile, tiling.image_width, transform);
}

template <class T>
inline void transform_tile(const T* images, const Tiling& tiling, const Position& position, const Block<T>& block,
                           int64_t tile) {
  const auto transform = [](const auto& d, auto& t) __attribute__((always_inline)) { of_tile(d, t); };
  transform_square<T, kTile>(images, position.tile(), block, tile, tiling.width, transform);
}

// What is added to a convolution: a bias for each channel, and a multiple of images that lie like the results. Null: none.
template <class T>
struct Added {
  const T* bias;
  const T* images;
  T factor;
};

// Aᵀ M A and what is added to it, for the pixels of a tile that lie inside the result.
template <class T>
inline void finish_tile(const Block<T>& block, int64_t tile, const Added<T>& added, const Tiling& tiling,
                        const Position& position, T* results) {
  using V = Lanes<T>;
  const Square s = position.tile();
  const int64_t channels = block.channels, stride = block.stride();
  for_vectors<T>(block, tile, [&](int64_t c, int64_t used, const T* source) {
    V half[kTile][kPatch];
    for (int64_t j = 0; j < kPatch; ++j, source += stride) {
      V products[kPatch], found[kTile];
#pragma GCC unroll 6
      for (int64_t i = 0; i < kPatch; ++i) products[i] = load_lanes(source + i * kPatch * stride);
      to_tile(products, found);
#pragma GCC unroll 6
      for (int64_t i = 0; i < kTile; ++i) half[i][j] = found[i];
    }
    const V shift = added.bias == nullptr ? V{} : load_first(added.bias + c, used);
    for (int64_t y = 0; y < s.bottom; ++y) {
      V found[kTile];
      to_tile(half[y], found);
      const int64_t offset = (s.origin + y * tiling.width) * channels + c;
#pragma GCC unroll 4
      for (int64_t x = 0; x < kTile; ++x) {
        if (x >= s.right) continue;
        const int64_t place = offset + x * channels;
        V value = found[x] + shift;
        if (added.images != nullptr) value += added.factor * load_first(added.images + place, used);
        store_first<T>(results + place, value, used);
      }
    }
  });
}

}  // namespace fastlip::winograd

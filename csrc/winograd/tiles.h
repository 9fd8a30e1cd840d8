// How images are cut into tiles, and the transformed tiles of a block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/transpose.h"
#include "maxmin/lanes.h"
#include "winograd/transform.h"

namespace fastlip::winograd {

// Channels that lie next to each other in a block: as many as the columns of a panel.
template <class T>
constexpr int64_t kWide = kPanelVectors * kLaneCount<T>;

inline int64_t parts(int64_t size, int64_t of) { return (size + of - 1) / of; }

// Results of batch × height × width pixels, which depend on images of image_height × image_width pixels: the patch of a
// result begins `top` pixels above it and `left` pixels before it. What lies outside an image is 0, or with `wrap` the
// image again.
template <class F>
struct Tiling {
  int64_t batch, height, width;
  int64_t image_height, image_width, top, left;
  bool wrap;

  int64_t rows() const { return parts(height, F::kTile); }
  int64_t columns() const { return parts(width, F::kTile); }
  int64_t count() const { return batch * rows() * columns(); }
};

// The pixels of a square: that in row y and column x has the number rows[y] + columns[x] in the array, unless one of them
// is negative, which says outside.
template <int64_t side>
struct Square {
  int64_t rows[side], columns[side];
};

constexpr int64_t kOutside = -1;

// Where an index along one axis lies. Behind the image only `beyond` more are read: results need no others.
inline int64_t inside(int64_t index, int64_t size, bool wrap, int64_t beyond) {
  if (index >= 0 && index < size) return index;
  return wrap && index < size + beyond ? (index % size + size) % size : kOutside;
}

// The tiles one after the other, without a division for each.
template <class F>
class Position {
 public:
  Position(const Tiling<F>& tiling, int64_t tile)
      : tiling_(tiling),
        image_(tile / tiling.columns() / tiling.rows()),
        y_(tile / tiling.columns() % tiling.rows() * F::kTile),
        x_(tile % tiling.columns() * F::kTile) {
    begin_row();
    begin_column();
  }

  const Square<F::kPatch>& patch() const { return patch_; }
  const Square<F::kTile>& tile() const { return tile_; }

  void advance() {
    x_ += F::kTile;
    if (x_ >= tiling_.width) {
      x_ = 0;
      y_ += F::kTile;
      if (y_ >= tiling_.height) {
        y_ = 0;
        ++image_;
      }
      begin_row();
    }
    begin_column();
  }

 private:
  template <int64_t side>
  void set_rows(Square<side>& square, int64_t first, int64_t height, int64_t width, bool wrap,
                int64_t beyond) const {
    for (int64_t i = 0; i < side; ++i) {
      const int64_t y = inside(first + i, height, wrap, beyond);
      square.rows[i] = y == kOutside ? kOutside : (image_ * height + y) * width;
    }
  }
  template <int64_t side>
  static void set_columns(Square<side>& square, int64_t first, int64_t width, bool wrap, int64_t beyond) {
    for (int64_t i = 0; i < side; ++i) square.columns[i] = inside(first + i, width, wrap, beyond);
  }
  void begin_row() {
    const Tiling<F>& t = tiling_;
    set_rows(patch_, y_ - t.top, t.image_height, t.image_width, t.wrap, kTaps - 1 - t.top);
    set_rows(tile_, y_, t.height, t.width, false, 0);
  }
  void begin_column() {
    set_columns(patch_, x_ - tiling_.left, tiling_.image_width, tiling_.wrap, kTaps - 1 - tiling_.left);
    set_columns(tile_, x_, tiling_.width, false, 0);
  }

  const Tiling<F>& tiling_;
  int64_t image_, y_, x_;
  Square<F::kPatch> patch_;
  Square<F::kTile> tile_;
};

// Transformed tiles of a block as [product][kWide channels][tile][channel]. Products are one vector further apart than
// they need, since strides of powers of two would use few sets of a cache.
template <class F, class T>
struct Block {
  T* data;
  int64_t channels, tiles;

  static int64_t size(int64_t channels, int64_t tiles) { return F::kProducts * stride(channels, tiles); }
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
template <class F, class T, class Visit>
inline void for_vectors(const Block<F, T>& block, int64_t tile, const Visit& visit) {
  for (int64_t c = 0; c < block.channels; c += kLaneCount<T>) {
    const int64_t used = std::min<int64_t>(kLaneCount<T>, block.channels - c);
    visit(c, used, block.at(0, c / kWide<T>, tile) + c % kWide<T>);
  }
}

// One column of a square of pixels: the first `used` lanes of each, and 0 outside the image. What is `ahead` in memory
// comes nearer.
template <class T, int64_t side, bool full>
[[gnu::always_inline]] inline void load_column(const T* images, const Square<side>& s, int64_t x, int64_t channels,
                                               int64_t used, int64_t ahead, Lanes<T> (&pixels)[side]) {
#pragma GCC unroll 6
  for (int64_t y = 0; y < side; ++y) {
    pixels[y] = Lanes<T>{};
    if (s.rows[y] < 0) continue;
    const T* pixel = images + (s.rows[y] + s.columns[x]) * channels;
    __builtin_prefetch(pixel + ahead);
    pixels[y] = full ? load_lanes(pixel) : load_first(pixel, used);
  }
}

// Writes the transform of side × side pixels, first along columns, then along rows: Bᵀ d B, or A e Aᵀ; `stride` numbers
// separate two products of the result.
template <class F, class T, int64_t side, bool full, class Transform>
[[gnu::always_inline]] inline void transform_vector(const T* images, const Square<side>& s, int64_t channels,
                                                    int64_t used, T* target, int64_t stride,
                                                    const Transform& transform) {
  using V = Lanes<T>;
  V half[F::kPatch][side];
  for (int64_t x = 0; x < side; ++x) {
    V found[F::kPatch] = {};
    if (s.columns[x] >= 0) {
      V pixels[side];
      load_column<T, side, full>(images, s, x, channels, used, 2 * F::kTile * channels, pixels);
      transform(pixels, found);
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < F::kPatch; ++i) half[i][x] = found[i];
  }
  for (int64_t i = 0; i < F::kPatch; ++i, target += F::kPatch * stride) {
    V found[F::kPatch];
    transform(half[i], found);
#pragma GCC unroll 6
    for (int64_t j = 0; j < F::kPatch; ++j) store_lanes<T>(target + j * stride, found[j]);
  }
}

template <class F, class T, int64_t side, class Transform>
inline void transform_square(const T* images, const Square<side>& s, const Block<F, T>& block, int64_t tile,
                             const Transform& transform) {
  const int64_t channels = block.channels, stride = block.stride();
  for_vectors(block, tile, [&](int64_t c, int64_t used, T* target) {
    if (used == kLaneCount<T>) {
      transform_vector<F, T, side, true>(images + c, s, channels, used, target, stride, transform);
    } else {
      transform_vector<F, T, side, false>(images + c, s, channels, used, target, stride, transform);
    }
  });
}

template <class F, class T>
inline void transform_patch(const T* images, const Position<F>& position, const Block<F, T>& block, int64_t tile) {
  const auto transform = [](const auto& d, auto& t) __attribute__((always_inline)) { F::of_patch(d, t); };
  transform_square(images, position.patch(), block, tile, transform);
}

template <class F, class T>
inline void transform_tile(const T* images, const Position<F>& position, const Block<F, T>& block, int64_t tile) {
  const auto transform = [](const auto& d, auto& t) __attribute__((always_inline)) { F::of_tile(d, t); };
  transform_square(images, position.tile(), block, tile, transform);
}

enum class Activation : int64_t { kNone, kMaxMin, kRelu };

// What follows a convolution z: activation(gain (z + bias) + factor images), where the images lie like the results. The pairs of MaxMin
// are neighbours, and their bits lie as those of eight pairs in a byte, pixel after pixel. Null: none.
template <class T>
struct Epilogue {
  const T* bias;
  const T* images;
  T factor, gain;
  Activation activation;
  uint8_t* bits;

  // Of `used` channels from `c` on at one pixel, whose first is at `place` of the images.
  [[gnu::always_inline]] Lanes<T> operator()(Lanes<T> value, int64_t c, int64_t place, int64_t used) const {
    if (gain != T{1}) value *= gain;
    if (images != nullptr) value += factor * load_first(images + place, used);
    if (activation == Activation::kRelu) return relu<T>(value);
    if (activation == Activation::kNone) return value;
    uint8_t found = 0;
    constexpr auto lane = std::make_integer_sequence<int, kLaneCount<T>>{};
    value = maxmin<T>(value, used / 2, bits == nullptr ? nullptr : &found, lane);
    if (bits != nullptr) {
      uint8_t& byte = bits[place / kPairs];
      const int64_t pair = c % kPairs / 2;
      byte = static_cast<uint8_t>((pair == 0 ? 0 : byte) | found << pair);
    }
    return value;
  }

 private:
  static constexpr int64_t kPairs = 16;  // channels whose bits fill a byte
};

// Aᵀ M A and what follows it, for the pixels of a tile that lie inside the result.
template <class F, class T>
inline void finish_tile(const Block<F, T>& block, int64_t tile, const Epilogue<T>& epilogue,
                        const Position<F>& position, T* results) {
  using V = Lanes<T>;
  const Square<F::kTile>& s = position.tile();
  const int64_t channels = block.channels, stride = block.stride();
  for_vectors(block, tile, [&](int64_t c, int64_t used, const T* source) {
    V half[F::kTile][F::kPatch];
    for (int64_t j = 0; j < F::kPatch; ++j, source += stride) {
      V products[F::kPatch], found[F::kTile];
#pragma GCC unroll 6
      for (int64_t i = 0; i < F::kPatch; ++i) products[i] = load_lanes(source + i * F::kPatch * stride);
      F::to_tile(products, found);
#pragma GCC unroll 6
      for (int64_t i = 0; i < F::kTile; ++i) half[i][j] = found[i];
    }
    const V shift = epilogue.bias == nullptr ? V{} : load_first(epilogue.bias + c, used);
    for (int64_t y = 0; y < F::kTile && s.rows[y] >= 0; ++y) {
      V found[F::kTile];
      F::to_tile(half[y], found);
#pragma GCC unroll 4
      for (int64_t x = 0; x < F::kTile; ++x) {
        if (s.columns[x] < 0) continue;
        const int64_t place = (s.rows[y] + s.columns[x]) * channels + c;
        store_first<T>(results + place, epilogue(found[x] + shift, c, place, used), used);
      }
    }
  });
}

}  // namespace fastlip::winograd

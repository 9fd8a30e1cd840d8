// Reads and writes the pixels of one chunk of channels, as vectors across channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/transpose.h"

namespace fastlip::spectral_conv {

// Images (n, channels, height, width), contiguous or channels-last.
template <class T>
struct Images {
  T* data;
  int64_t channels;
  int64_t height;
  int64_t width;
  bool channels_last;

  T* at(int64_t image, int64_t channel) const {
    const int64_t pixels = height * width;
    return data + image * channels * pixels + (channels_last ? channel : channel * pixels);
  }
};

// Rows of an image in pairs, [pair][x][row of the pair][lane]: the two rows of a pair are the real and the imaginary
// part of one complex signal.
template <class T>
struct Band {
  static constexpr int64_t lanes = kLaneCount<T>;
  T* data;
  int64_t width;  // of the FFT size

  T* pair(int64_t pair) const { return data + pair * width * 2 * lanes; }
  T* at(int64_t row, int64_t x) const { return pair(row / 2) + x * 2 * lanes + row % 2 * lanes; }
};

// Pairs that make at least one whole vector of pixels.
template <class T>
int64_t pairs_per_band(int64_t width) {
  return std::max<int64_t>(1, kLaneCount<T> / (2 * width));
}

// Calls visit(begin, count, target) for runs of up to a vector of pixels, target[i] being pixel i's place in the band.
template <class T, class Visit>
void for_each_run(const Band<T>& band, int64_t rows, int64_t width, const Visit& visit) {
  constexpr int64_t lanes = kLaneCount<T>;
  T* target[lanes];
  int64_t row = 0, x = 0;
  for (int64_t begin = 0; begin < rows * width; begin += lanes) {
    const int64_t count = std::min(lanes, rows * width - begin);
    for (int64_t i = 0; i < count; ++i) {
      target[i] = band.at(row, x);
      if (++x == width) x = 0, ++row;
    }
    visit(begin, count, target);
  }
}

// `rows` rows from row y on, `channels` lanes; entries beyond the image and the second row of half a pair become 0.
template <class T>
void load_band(const Images<const T>& images, const T* image, int64_t channels, int64_t y, int64_t rows,
               const Band<T>& band) {
  constexpr int64_t lanes = kLaneCount<T>;
  const int64_t width = images.width, pixels = images.height * width;
  if (images.channels_last) {
    for (int64_t row = 0; row < rows; ++row) {
      const T* source = image + (y + row) * width * images.channels;
      for (int64_t x = 0; x < width; ++x) {
        store_lanes<T>(band.at(row, x), load_first(source + x * images.channels, channels));
      }
    }
  } else {
    const T* source = image + y * width;
    for_each_run(band, rows, width, [&](int64_t begin, int64_t count, T* const* target) {
      Lanes<T> square[lanes] = {};
      for (int64_t i = 0; i < channels; ++i) square[i] = load_first(source + i * pixels + begin, count);
      transpose<T>(square);
      for (int64_t i = 0; i < count; ++i) store_lanes<T>(target[i], square[i]);
    });
  }
  for (int64_t row = 0; row < rows + rows % 2; ++row) {
    for (int64_t x = row < rows ? width : 0; x < band.width; ++x) store_lanes<T>(band.at(row, x), Lanes<T>{});
  }
}

// The inverse of load_band, without the entries beyond the image.
template <class T>
void store_band(const Band<T>& band, int64_t channels, int64_t y, int64_t rows, const Images<T>& images, T* image) {
  constexpr int64_t lanes = kLaneCount<T>;
  const int64_t width = images.width, pixels = images.height * width;
  if (images.channels_last) {
    for (int64_t row = 0; row < rows; ++row) {
      T* target = image + (y + row) * width * images.channels;
      for (int64_t x = 0; x < width; ++x) {
        store_first<T>(target + x * images.channels, load_lanes(band.at(row, x)), channels);
      }
    }
    return;
  }
  T* target = image + y * width;
  for_each_run(band, rows, width, [&](int64_t begin, int64_t count, T* const* source) {
    Lanes<T> square[lanes] = {};
    for (int64_t i = 0; i < count; ++i) square[i] = load_lanes(source[i]);
    transpose<T>(square);
    for (int64_t i = 0; i < channels; ++i) store_first<T>(target + i * pixels + begin, square[i], count);
  });
}

}  // namespace fastlip::spectral_conv

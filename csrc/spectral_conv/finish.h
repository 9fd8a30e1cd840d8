// What follows a convolution in a network, done to each band of pixels before it is stored.
#pragma once

#include <cstdint>
#include <utility>

#include "maxmin/lanes.h"
#include "spectral_conv/image.h"

namespace fastlip::spectral_conv {

enum class Activation : int64_t { kNone, kRelu, kMaxMin };

// The bits of MaxMin as [image][row][column][chunk of channels].
template <class Byte>
struct PairBits {
  Byte* data = nullptr;
  int64_t height = 0, width = 0, chunks = 0;

  Byte* at(int64_t image, int64_t y, int64_t x, int64_t chunk) const {
    return data == nullptr ? nullptr : data + ((image * height + y) * width + x) * chunks + chunk;
  }

  // Exchanges the pairs of a band back.
  template <class T>
  void undo(const Band<T>& band, int64_t image, int64_t chunk, int64_t y, int64_t rows) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t x = 0; x < width; ++x) {
        T* place = band.at(row, x);
        store_lanes<T>(place, exchange_pairs<T>(load_lanes(place), *at(image, y + row, x, chunk)));
      }
    }
  }
};

// activation(z), or activation(residual - z) where there is a residual.
template <class T>
struct Finish {
  Images<const T> residual = {};
  Activation activation = Activation::kNone;
  PairBits<uint8_t> bits = {};

  bool is_identity() const { return residual.data == nullptr && activation == Activation::kNone; }

  // `rows` rows from row y on, of the `channels` channels of a chunk, from `first` on; `other` is scratch memory.
  void apply(const Band<T>& band, const Band<T>& other, int64_t image, int64_t chunk, int64_t first, int64_t channels,
             int64_t y, int64_t rows) const {
    constexpr auto lane = std::make_integer_sequence<int, kLaneCount<T>>{};
    if (residual.data != nullptr) load_band(residual, residual.at(image, first), channels, y, rows, other);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t x = 0; x < residual.width; ++x) {
        T* place = band.at(row, x);
        Lanes<T> value = load_lanes(place);
        if (residual.data != nullptr) value = load_lanes(other.at(row, x)) - value;
        if (activation == Activation::kRelu) value = relu<T>(value);
        if (activation == Activation::kMaxMin) value = maxmin<T>(value, channels / 2, bits.at(image, y + row, x, chunk), lane);
        store_lanes<T>(place, value);
      }
    }
  }
};

}  // namespace fastlip::spectral_conv

// What follows a convolution in a network, done to each band of pixels before it is stored.
#pragma once

#include <cstdint>
#include <utility>

#include "spectral_conv/image.h"

namespace fastlip::spectral_conv {

enum class Activation : int64_t { kNone, kRelu, kMaxMin };

// NaN stays NaN.
template <class T>
inline Lanes<T> relu(Lanes<T> value) {
  return value < T{0} ? Lanes<T>{} : value;
}

// Each of the first `pairs` pairs of neighbouring lanes in descending order; the others stay.
template <class T, int... lane>
inline Lanes<T> maxmin(Lanes<T> value, int64_t pairs, std::integer_sequence<int, lane...>) {
  const Lanes<T> low = __builtin_shufflevector(value, value, (lane / 2 * 2)...);
  const Lanes<T> high = __builtin_shufflevector(value, value, (lane / 2 * 2 + 1)...);
  const Lanes<T> swapped = __builtin_shufflevector(value, value, (lane ^ 1)...);
  const Lanes<T> number{T(lane / 2)...};
  return (high > low) & (number < static_cast<T>(pairs)) ? swapped : value;
}

// activation(z), or activation(residual - z) where there is a residual.
template <class T>
struct Finish {
  Images<const T> residual = {};
  Activation activation = Activation::kNone;

  bool is_identity() const { return residual.data == nullptr && activation == Activation::kNone; }

  // `rows` rows from row y on, of `channels` channels from `first` on; `other` is scratch memory.
  void apply(const Band<T>& band, const Band<T>& other, int64_t image, int64_t first, int64_t channels, int64_t y,
             int64_t rows) const {
    constexpr auto lane = std::make_integer_sequence<int, kLaneCount<T>>{};
    if (residual.data != nullptr) load_band(residual, residual.at(image, first), channels, y, rows, other);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t x = 0; x < residual.width; ++x) {
        T* place = band.at(row, x);
        Lanes<T> value = load_lanes(place);
        if (residual.data != nullptr) value = load_lanes(other.at(row, x)) - value;
        if (activation == Activation::kRelu) value = relu<T>(value);
        if (activation == Activation::kMaxMin) value = maxmin<T>(value, channels / 2, lane);
        store_lanes<T>(place, value);
      }
    }
  }
};

}  // namespace fastlip::spectral_conv

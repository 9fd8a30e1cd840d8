// What follows a convolution in a network, done to each band of pixels before it is stored.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "spectral_conv/image.h"

namespace fastlip::spectral_conv {

enum class Activation : int64_t { kNone, kRelu, kMaxMin };

// NaN stays NaN.
template <class T>
inline Lanes<T> relu(Lanes<T> value) {
  return value < T{0} ? Lanes<T>{} : value;
}

template <class T, int... lane>
inline Lanes<T> exchange_neighbours(Lanes<T> value, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(value, value, (lane ^ 1)...);
}

// One bit for each pair of neighbouring lanes of a comparison, whose two lanes are equal.
template <class T, class Mask>
inline uint8_t pack_pairs(const Mask& lanes) {
  uint8_t bits = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return static_cast<uint8_t>(_pext_u32(_mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes)), 0x5555));
  }
#endif
  for (int i = 0; i < kLaneCount<T>; i += 2) bits |= static_cast<uint8_t>((lanes[i] & 1) << (i / 2));
  return bits;
}

// The inverse: exchanges the pairs whose bit is set.
template <class T>
inline Lanes<T> exchange_pairs(Lanes<T> value, uint8_t bits) {
  constexpr auto lane = std::make_integer_sequence<int, kLaneCount<T>>{};
  const Lanes<T> exchanged = exchange_neighbours<T>(value, lane);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __mmask16 mask = static_cast<__mmask16>(_pdep_u32(bits, 0x5555) * 3);
    return reinterpret_cast<Lanes<T>>(
        _mm512_mask_blend_ps(mask, reinterpret_cast<__m512>(value), reinterpret_cast<__m512>(exchanged)));
  }
#endif
  for (int i = 0; i < kLaneCount<T>; ++i) {
    if (bits >> (i / 2) & 1) value[i] = exchanged[i];
  }
  return value;
}

// Each of the first `pairs` pairs of neighbouring lanes in descending order, and a bit for those that were exchanged, if
// they are wanted; the other lanes stay.
template <class T, int... lane>
inline Lanes<T> maxmin(Lanes<T> value, int64_t pairs, uint8_t* bits, std::integer_sequence<int, lane...> all) {
  const Lanes<T> low = __builtin_shufflevector(value, value, (lane / 2 * 2)...);
  const Lanes<T> high = __builtin_shufflevector(value, value, (lane / 2 * 2 + 1)...);
  const Lanes<T> number{T(lane / 2)...};
  const auto exchanged = (high > low) & (number < static_cast<T>(pairs));
  if (bits != nullptr) *bits = pack_pairs<T>(exchanged);
  return exchanged ? exchange_neighbours<T>(value, all) : value;
}

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

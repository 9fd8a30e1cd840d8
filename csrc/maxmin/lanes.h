// Activations of a vector of channels of one pixel, in registers.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common/gemm.h"

namespace fastlip {

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

}  // namespace fastlip

// Eight lanes of any element type as a GCC/Clang vector: the compiler lowers them to the instruction set that
// this copy of the file is built for. Eight, because eight comparison results make one byte of a bit mask.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastlip {

constexpr int64_t kLanes = 8;

template <class T>
struct Vec8Of {
  using type __attribute__((vector_size(8 * sizeof(T)))) = T;
};
template <class T>
using Vec8 = typename Vec8Of<T>::type;

template <class T>
inline Vec8<T> load8(const T* source) {
  Vec8<T> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class T>
inline void store8(T* target, Vec8<T> value) {
  std::memcpy(target, &value, sizeof(value));
}

// One bit per lane of a comparison result (lanes are 0 or -1).
inline uint8_t pack_bits(Vec8<int16_t> lanes) {
#if defined(__x86_64__)
  __m128i value;
  std::memcpy(&value, &lanes, sizeof(value));
  return static_cast<uint8_t>(_mm_movemask_epi8(_mm_packs_epi16(value, _mm_setzero_si128())));
#else
  uint8_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= static_cast<uint8_t>((lanes[i] & 1) << i);
  return bits;
#endif
}

inline uint8_t pack_bits(Vec8<int32_t> lanes) {
#if defined(__AVX2__)
  __m256 value;
  std::memcpy(&value, &lanes, sizeof(value));
  return static_cast<uint8_t>(_mm256_movemask_ps(value));
#else
  return pack_bits(__builtin_convertvector(lanes, Vec8<int16_t>));
#endif
}

inline uint8_t pack_bits(Vec8<int64_t> lanes) { return pack_bits(__builtin_convertvector(lanes, Vec8<int32_t>)); }

// The inverse: lane i is -1 where bit i is set.
template <class Integer>
inline Vec8<Integer> unpack_bits(uint8_t bits) {
  const Vec8<Integer> weight = {1, 2, 4, 8, 16, 32, 64, 128};
  const Vec8<Integer> zero = {};
  return ((static_cast<Integer>(bits) + zero) & weight) != zero;
}

}  // namespace fastlip

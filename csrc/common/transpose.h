// Vectors that are partly filled, and squares of vectors transposed in registers.
#pragma once

#include <cstdint>
#include <utility>

#include "common/gemm.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastlip {

// The first `count` lanes from memory, the others 0; nothing behind them is read.
template <class T>
inline Lanes<T> load_first(const T* source, int64_t count) {
  if (count >= kLaneCount<T>) return load_lanes(source);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Lanes<T>>(_mm512_maskz_loadu_ps(mask, source));
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Lanes<T>>(_mm512_maskz_loadu_pd(mask, source));
#else
  T value[kLaneCount<T>] = {};
  for (int64_t lane = 0; lane < count; ++lane) value[lane] = source[lane];
  return load_lanes(value);
#endif
}

template <class T>
inline void store_first(T* target, Lanes<T> value, int64_t count) {
  if (count >= kLaneCount<T>) return store_lanes(target, value);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(target, mask, reinterpret_cast<__m512>(value));
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(target, mask, reinterpret_cast<__m512d>(value));
#else
  for (int64_t lane = 0; lane < count; ++lane) target[lane] = value[lane];
#endif
}

template <int step, class V, int... lane>
inline void exchange(V& low, V& high, std::integer_sequence<int, lane...>) {
  constexpr int size = sizeof...(lane);
  const V first = __builtin_shufflevector(low, high, ((lane & step) ? size + lane - step : lane)...);
  high = __builtin_shufflevector(low, high, ((lane & step) ? size + lane : lane + step)...);
  low = first;
}

// Transposes a square of vectors: blocks of `step` elements across the diagonal change places, for each power of two.
template <class T, int step = 1>
inline void transpose(Lanes<T>* x) {
  constexpr int lanes = kLaneCount<T>;
  if constexpr (step < lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if ((i & step) == 0) exchange<step>(x[i], x[i + step], std::make_integer_sequence<int, lanes>{});
    }
    transpose<T, 2 * step>(x);
  }
}

}  // namespace fastlip

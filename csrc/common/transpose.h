// Transposes squares of vectors in registers.
#pragma once

#include <utility>

#include "common/gemm.h"

namespace fastlip {

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

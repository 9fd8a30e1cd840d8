// What the products at one frequency are made of: a tile of sums in registers, and interleaved complex numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/gemm.h"
#include "common/transpose.h"
#include "spectral_conv/fft.h"

namespace fastlip::spectral_conv {

template <class T>
constexpr int kRows = kPanelRows < kLaneCount<T> ? kPanelRows : kLaneCount<T>;

// `rows` rows of one vector of columns. Real products alternate between two sums, which do not wait for each other.
template <class T, int rows, bool is_complex>
struct Tile {
  Lanes<T> re[rows] = {};
  Lanes<T> im[rows] = {};

  // += a bᵀ for one column a, whose entries are `stride` apart and their imaginary parts `part` further on.
  template <int turn>
  [[gnu::always_inline]] void add(const T* a, int64_t stride, int64_t part, const T* b) {
    const Lanes<T> b_re = load_lanes(b);
    if constexpr (is_complex) {
      const Lanes<T> b_im = load_lanes(b + kLaneCount<T>);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const T a_re = a[r * stride], a_im = a[r * stride + part];
        re[r] += b_re * a_re;
        im[r] += b_im * a_re;
        re[r] -= b_im * a_im;
        im[r] += b_re * a_im;
      }
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) (turn == 0 ? re : im)[r] += b_re * a[r * stride];
    }
  }

  // `count` columns of a, and of b.
  [[gnu::always_inline]] void add_all(const T* a, int64_t a_step, int64_t stride, int64_t part, const T* b,
                                      int64_t count) {
    constexpr int64_t b_step = is_complex ? 2 * kLaneCount<T> : kLaneCount<T>;
    for (int64_t pair = 0; pair < count / 2; ++pair, a += 2 * a_step, b += 2 * b_step) {
      add<0>(a, stride, part, b);
      add<1>(a + a_step, stride, part, b + b_step);
    }
    if (count % 2 != 0) add<0>(a, stride, part, b);
  }

  ComplexLanes<T> row(int r) const {
    if constexpr (is_complex) return {re[r], im[r]};
    return {re[r] + im[r], Lanes<T>{}};
  }
};

// Interleaved complex numbers, the first `count` of a vector's lanes, to real and imaginary parts and back.
template <class T, int... lane>
inline ComplexLanes<T> separate(Lanes<T> low, Lanes<T> high, std::integer_sequence<int, lane...>) {
  return {__builtin_shufflevector(low, high, (2 * lane)...), __builtin_shufflevector(low, high, (2 * lane + 1)...)};
}

template <class T>
inline ComplexLanes<T> load_interleaved(const T* source, int64_t count) {
  constexpr int64_t lanes = kLaneCount<T>;
  const Lanes<T> low = load_first(source, std::min(2 * count, lanes));
  const Lanes<T> high = 2 * count > lanes ? load_first(source + lanes, 2 * count - lanes) : Lanes<T>{};
  return separate<T>(low, high, std::make_integer_sequence<int, lanes>{});
}

template <class T, int... lane>
inline void store_interleaved(T* target, ComplexLanes<T> value, int64_t count, std::integer_sequence<int, lane...>) {
  constexpr int lanes = kLaneCount<T>;
  const auto low = __builtin_shufflevector(value.re, value.im, (lane / 2 + lane % 2 * lanes)...);
  const auto high = __builtin_shufflevector(value.re, value.im, ((lanes + lane) / 2 + lane % 2 * lanes)...);
  store_first<T>(target, low, std::min<int64_t>(2 * count, lanes));
  if (2 * count > lanes) store_first<T>(target + lanes, high, 2 * count - lanes);
}

template <class T>
inline void add_interleaved(T* target, ComplexLanes<T> value, int64_t count, bool add) {
  if (add) {
    const ComplexLanes<T> before = load_interleaved(target, count);
    value = {value.re + before.re, value.im + before.im};
  }
  store_interleaved(target, value, count, std::make_integer_sequence<int, kLaneCount<T>>{});
}

// Asks for a stretch of memory in equal parts while other work goes on.
template <class T>
struct Approach {
  const T* data = nullptr;
  int64_t size = 0;
  int64_t steps = 1;
  int64_t part = (size + steps - 1) / steps;

  void advance() {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t count = std::min(part, size);
    for (int64_t i = 0; i < count; i += line) __builtin_prefetch(data + i, 1, 2);
    data += count;
    size -= count;
  }
};

}  // namespace fastlip::spectral_conv

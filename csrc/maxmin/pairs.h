// Sorting pairs: eight at a time from registers, and runs of them along memory, with one bit per pair (b > a).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace fastlip {

// An element type: how it is stored, and when b > a. NaN compares false, as in IEEE arithmetic.
template <class T, class I>
struct Real {
  using Storage = T;
  using Integer = I;
  static Vec8<I> greater(Vec8<T> b, Vec8<T> a) { return b > a; }
};
using Float32 = Real<float, int32_t>;
using Float64 = Real<double, int64_t>;

// Sixteen-bit floats are compared as integers: sign and magnitude become two's complement, both zeros become 0.
template <int16_t infinity>
struct Real16 {
  using Storage = int16_t;
  using Integer = int16_t;
  static Vec8<int16_t> greater(Vec8<int16_t> b, Vec8<int16_t> a) {
    const Vec8<int16_t> size_a = a & 0x7fff, size_b = b & 0x7fff;
    const Vec8<int16_t> order_a = a < 0 ? -size_a : size_a, order_b = b < 0 ? -size_b : size_b;
    return (order_b > order_a) & (size_a <= infinity) & (size_b <= infinity);
  }
};
using Float16 = Real16<0x7c00>;
using BFloat16 = Real16<0x7f80>;

// Where the bits of eight pairs come from: compared and written (forward), or read (the swap alone).
template <class Type, bool compare>
Vec8<typename Type::Integer> swaps(Vec8<typename Type::Storage> a, Vec8<typename Type::Storage> b, uint8_t* bits) {
  if constexpr (compare) {
    const auto swap = Type::greater(b, a);
    *bits = pack_bits(swap);
    return swap;
  } else {
    return unpack_bits<typename Type::Integer>(*bits);
  }
}

// The first and the second element of eight pairs.
template <class T>
struct Pairs {
  Vec8<T> first, second;
};

template <class Type, bool compare, class T = typename Type::Storage>
Pairs<T> sort_or_swap(const Pairs<T>& x, uint8_t* bits) {
  const auto swap = swaps<Type, compare>(x.first, x.second, bits);
  return {swap ? x.second : x.first, swap ? x.first : x.second};
}

// A pair of streams a, b: eight pairs at (a + i, b + i).
template <class Type, bool compare, class T = typename Type::Storage>
void separate_run(const T* a, const T* b, T* out_a, T* out_b, uint8_t* bits, int64_t length) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    const Pairs<T> y = sort_or_swap<Type, compare>({load8(a + i), load8(b + i)}, bits + i / kLanes);
    store8<T>(out_a + i, y.first);
    store8<T>(out_b + i, y.second);
  }
  if (i == length) return;
  const size_t bytes = static_cast<size_t>(length - i) * sizeof(T);
  Pairs<T> x = {};
  std::memcpy(&x.first, a + i, bytes);
  std::memcpy(&x.second, b + i, bytes);
  const Pairs<T> y = sort_or_swap<Type, compare>(x, bits + i / kLanes);
  std::memcpy(out_a + i, &y.first, bytes);
  std::memcpy(out_b + i, &y.second, bytes);
}

template <class T>
Pairs<T> split(Vec8<T> low, Vec8<T> high) {
  return {__builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14),
          __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15)};
}

template <class T>
Pairs<T> interleave(const Pairs<T>& y) {
  return {__builtin_shufflevector(y.first, y.second, 0, 8, 1, 9, 2, 10, 3, 11),
          __builtin_shufflevector(y.first, y.second, 4, 12, 5, 13, 6, 14, 7, 15)};
}

// Two pairs of four neighbours at x, each with a byte of its own.
template <class Type, bool compare, class T = typename Type::Storage>
void two_quads(const T* x, T* y, uint8_t* bits) {
  const Vec8<T> low = load8(x), high = load8(x + kLanes);
  uint8_t both = compare ? 0 : bits[0] | bits[1] << 4;
  const Pairs<T> sorted = sort_or_swap<Type, compare>(
      {__builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11),
       __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15)},
      &both);
  if constexpr (compare) {
    bits[0] = both & 15;
    bits[1] = both >> 4;
  }
  store8<T>(y, __builtin_shufflevector(sorted.first, sorted.second, 0, 1, 2, 3, 8, 9, 10, 11));
  store8<T>(y + kLanes, __builtin_shufflevector(sorted.first, sorted.second, 4, 5, 6, 7, 12, 13, 14, 15));
}

// Neighbours in memory: eight pairs at x + 2 i.
template <class Type, bool compare, class T = typename Type::Storage>
void interleaved_run(const T* x, T* y, uint8_t* bits, int64_t length) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    const Pairs<T> pairs = split<T>(load8(x + 2 * i), load8(x + 2 * i + kLanes));
    const Pairs<T> both = interleave(sort_or_swap<Type, compare>(pairs, bits + i / kLanes));
    store8<T>(y + 2 * i, both.first);
    store8<T>(y + 2 * i + kLanes, both.second);
  }
  if (i == length) return;
  const size_t bytes = static_cast<size_t>(length - i) * 2 * sizeof(T);
  T rest[2 * kLanes];
  std::memcpy(rest, x + 2 * i, bytes);
  std::fill(rest + 2 * (length - i), rest + 2 * kLanes, T{});
  const Pairs<T> pairs = split<T>(load8(rest), load8(rest + kLanes));
  const Pairs<T> both = interleave(sort_or_swap<Type, compare>(pairs, bits + i / kLanes));
  store8<T>(rest, both.first);
  store8<T>(rest + kLanes, both.second);
  std::memcpy(y + 2 * i, rest, bytes);
}

}  // namespace fastlip

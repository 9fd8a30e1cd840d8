// The gradient of a 3 x 3 kernel, W̄_τ = Σ_σ W_σ H_{σ-τ}, from 25 products instead of 81.
//
// In one dimension, five products give the three sums ȳ_a = Σ_b w_b h_{a+b}: the transpose of the product of two
// polynomials from its values at 0, 1, -1, 2 and infinity (Toom and Cook), as in Winograd's convolutions. The factors
// of h are whole numbers, their common divisors go to w.
#pragma once

#include <cstdint>

#include "common/gemm.h"
#include "gram_rowsum/geometry.h"

namespace fastlip::gram_rowsum {

constexpr int kValues = 5;
constexpr int kValuePanels = kValues * kValues;

template <class V>
inline void values_of_weights(const V* w, V* values) {
  const V outer = w[0] + w[2];
  values[0] = w[0] * 0.5f;
  values[1] = (outer + w[1]) * 0.5f;
  values[2] = (outer - w[1]) * (1.0f / 6);
  values[3] = (w[0] + (w[1] + w[2] * 2.0f) * 2.0f) * (1.0f / 6);
  values[4] = w[2];
}

template <class V>
inline void values_of_factors(const V* h, V* values) {
  const V across = h[3] - h[1];
  values[0] = (h[0] - h[2]) * 2.0f + across;
  values[1] = h[2] + h[1] - across;
  values[2] = (h[2] - h[1]) * 3.0f - across;
  values[3] = across;
  values[4] = h[4] - h[2] - across * 2.0f;
}

// ȳ_a for a = 2, 1, 0, which are the taps 0, 1, 2.
template <class V>
inline void taps_of_values(const V* y, V* taps) {
  const V even = y[1] + y[2];
  taps[0] = even + y[3] * 4.0f + y[4];
  taps[1] = y[1] - y[2] + y[3] * 2.0f;
  taps[2] = y[0] + even + y[3];
}

// Applies a transform from `from` to `to` values in both dimensions; source(y, x) is a vector, and store(y, x, value).
template <int from, int to, class V, class Transform, class Source, class Store>
inline void in_both_dimensions(const Transform& transform, const Source& source, const Store& store) {
  V half[from][to];
#pragma GCC unroll 5
  for (int y = 0; y < from; ++y) {
    V row[from];
#pragma GCC unroll 5
    for (int x = 0; x < from; ++x) row[x] = source(y, x);
    transform(row, half[y]);
  }
#pragma GCC unroll 5
  for (int x = 0; x < to; ++x) {
    V column[from], result[to];
#pragma GCC unroll 5
    for (int y = 0; y < from; ++y) column[y] = half[y][x];
    transform(column, result);
#pragma GCC unroll 5
    for (int y = 0; y < to; ++y) store(y, x, result[y]);
  }
}

// Panels of the same `size` each, `from_panel` and `to_panel` elements apart.
template <class T, int from, int to, class Transform>
void transform_panels(const T* source, int64_t from_panel, T* target, int64_t to_panel, int64_t size,
                      const Transform& transform) {
  using V = Lanes<T>;
  for (int64_t at = 0; at < size; at += kLaneCount<T>) {
    in_both_dimensions<from, to, V>(
        transform, [&](int y, int x) { return load_lanes(source + (y * from + x) * from_panel + at); },
        [&](int y, int x, V value) { store_lanes<T>(target + (y * to + x) * to_panel + at, value); });
  }
}

}  // namespace fastlip::gram_rowsum

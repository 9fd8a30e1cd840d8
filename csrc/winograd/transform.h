// Winograd's minimal filtering along one axis, at some points and infinity:
//
//   y = Aᵀ ((G g) ∘ (Bᵀ d)),  y_p = Σ_τ g_τ d_{p+τ},  p < tile, τ < 3,
//
// and the sums over the pixels of a tile Σ_p e_p d_{p+τ}, which take Bᵀ d as well. The numbers in Bᵀ and A are exact in
// binary; the factors 1/N_i stand in G and in the result of the sums. Lavin and Gray, CVPR 2016; Barabasz et al., ACM TOMS
// 2020 (points and errors).
#pragma once

#include <cstdint>

namespace fastlip::winograd {

constexpr int64_t kTaps = 3;

// F(tile, 3): kTile results along one axis take kPatch pixels and kPatch products.
template <int64_t tile>
struct Filter;

// F(4, 3) at 0, ±3/4, ±3/2, ∞: the fewest products.
template <>
struct Filter<4> {
  static constexpr int64_t kTile = 4, kPatch = 6, kProducts = kPatch * kPatch;

  // 1 / N_i with N_i = Π_{j≠i} (p_i - p_j) over the finite points, and 1 at infinity.
  static constexpr double kInverse[kPatch] = {64.0 / 81, -128.0 / 243, -128.0 / 243, 32.0 / 243, 32.0 / 243, 1.0};

  // Bᵀ d.
  template <class V>
  [[gnu::always_inline]] static void of_patch(const V (&d)[kPatch], V (&t)[kPatch]) {
    const V inner_even = d[4] - 2.25f * d[2], inner_odd = 0.75f * d[3] - 1.6875f * d[1];
    const V outer_even = d[4] - 0.5625f * d[2], outer_odd = 1.5f * d[3] - 0.84375f * d[1];
    t[0] = d[4] - 2.8125f * d[2] + 1.265625f * d[0];
    t[1] = inner_even + inner_odd;
    t[2] = inner_even - inner_odd;
    t[3] = outer_even + outer_odd;
    t[4] = outer_even - outer_odd;
    t[5] = d[5] - 2.8125f * d[3] + 1.265625f * d[1];
  }

  // A e: the powers of the points up to the third, for the sums over four pixels.
  template <class V>
  [[gnu::always_inline]] static void of_tile(const V (&e)[kTile], V (&t)[kPatch]) {
    const V inner_even = e[0] + 0.5625f * e[2], inner_odd = 0.75f * e[1] + 0.421875f * e[3];
    const V outer_even = e[0] + 2.25f * e[2], outer_odd = 1.5f * e[1] + 3.375f * e[3];
    t[0] = e[0];
    t[1] = inner_even + inner_odd;
    t[2] = inner_even - inner_odd;
    t[3] = outer_even + outer_odd;
    t[4] = outer_even - outer_odd;
    t[5] = e[3];
  }

  // Aᵀ m.
  template <class V>
  [[gnu::always_inline]] static void to_tile(const V (&m)[kPatch], V (&y)[kTile]) {
    const V inner_sum = m[1] + m[2], inner_difference = m[1] - m[2];
    const V outer_sum = m[3] + m[4], outer_difference = m[3] - m[4];
    y[0] = m[0] + inner_sum + outer_sum;
    y[1] = 0.75f * inner_difference + 1.5f * outer_difference;
    y[2] = 0.5625f * inner_sum + 2.25f * outer_sum;
    y[3] = 0.421875f * inner_difference + 3.375f * outer_difference + m[5];
  }

  // G g, in double precision.
  template <class V>
  [[gnu::always_inline]] static void of_taps(const V (&g)[kTaps], V (&t)[kPatch]) {
    const V inner = g[0] + 0.5625 * g[2], outer = g[0] + 2.25 * g[2];
    t[0] = kInverse[0] * g[0];
    t[1] = kInverse[1] * (inner + 0.75 * g[1]);
    t[2] = kInverse[2] * (inner - 0.75 * g[1]);
    t[3] = kInverse[3] * (outer + 1.5 * g[1]);
    t[4] = kInverse[4] * (outer - 1.5 * g[1]);
    t[5] = g[2];
  }

  // Gᵀ m, in double precision: the three sums.
  template <class V>
  [[gnu::always_inline]] static void to_taps(const V (&m)[kPatch], V (&g)[kTaps]) {
    V s[kPatch];
    for (int i = 0; i < kPatch; ++i) s[i] = kInverse[i] * m[i];
    g[0] = s[0] + s[1] + s[2] + s[3] + s[4];
    g[1] = 0.75 * (s[1] - s[2]) + 1.5 * (s[3] - s[4]);
    g[2] = 0.5625 * (s[1] + s[2]) + 2.25 * (s[3] + s[4]) + s[5];
  }
};

// F(2, 3) at 0, ±1, ∞: Bᵀ and A only add and subtract, and the worst case of rounding errors is about that of the sums of
// taps (fastlip/certification/rounding/winograd.py).
template <>
struct Filter<2> {
  static constexpr int64_t kTile = 2, kPatch = 4, kProducts = kPatch * kPatch;

  template <class V>
  [[gnu::always_inline]] static void of_patch(const V (&d)[kPatch], V (&t)[kPatch]) {
    t[0] = d[2] - d[0];
    t[1] = d[2] + d[1];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }

  template <class V>
  [[gnu::always_inline]] static void of_tile(const V (&e)[kTile], V (&t)[kPatch]) {
    t[0] = e[0];
    t[1] = e[0] + e[1];
    t[2] = e[0] - e[1];
    t[3] = e[1];
  }

  template <class V>
  [[gnu::always_inline]] static void to_tile(const V (&m)[kPatch], V (&y)[kTile]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }

  template <class V>
  [[gnu::always_inline]] static void of_taps(const V (&g)[kTaps], V (&t)[kPatch]) {
    const V even = 0.5 * (g[0] + g[2]), odd = 0.5 * g[1];
    t[0] = -g[0];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = g[2];
  }

  template <class V>
  [[gnu::always_inline]] static void to_taps(const V (&m)[kPatch], V (&g)[kTaps]) {
    const V even = 0.5 * (m[1] + m[2]);
    g[0] = even - m[0];
    g[1] = 0.5 * (m[1] - m[2]);
    g[2] = even + m[3];
  }
};

}  // namespace fastlip::winograd

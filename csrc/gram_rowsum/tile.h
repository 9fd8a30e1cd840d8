// Elementwise work on one tile of the Gram operator: signs as bits, absolute values, exponential weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/gemm.h"
#include "common/simd.h"
#include "gram_rowsum/geometry.h"

namespace fastlip::gram_rowsum {

struct Signs {
  uint32_t positive = 0;
  uint32_t negative = 0;
};

template <class T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

#if defined(__AVX512F__)
inline Signs signs_of(Lanes<float> x) {
  const __m512 value = reinterpret_cast<__m512>(x), zero = _mm512_setzero_ps();
  return {_mm512_cmp_ps_mask(value, zero, _CMP_GT_OQ), _mm512_cmp_ps_mask(value, zero, _CMP_LT_OQ)};
}
inline Signs signs_of(Lanes<double> x) {
  const __m512d value = reinterpret_cast<__m512d>(x), zero = _mm512_setzero_pd();
  return {_mm512_cmp_pd_mask(value, zero, _CMP_GT_OQ), _mm512_cmp_pd_mask(value, zero, _CMP_LT_OQ)};
}
#else
template <class V>
Signs signs_of(V x) {
  using T = std::remove_cvref_t<decltype(x[0])>;
  const V zero = {};
  const auto positive = x > zero, negative = x < zero;
  Integer<T> padded[2][kLanes] = {};
  static_assert(sizeof(V) <= sizeof(padded[0]));
  std::memcpy(padded[0], &positive, sizeof(V));
  std::memcpy(padded[1], &negative, sizeof(V));
  return {pack_bits(load8(padded[0])), pack_bits(load8(padded[1]))};
}
#endif

template <class T>
inline Lanes<T> absolute(Lanes<T> x) {
  return x < 0 ? -x : x;
}

// Adds |v| to `sums` and writes the signs of v as [positive, negative][row].
template <class T>
void reduce_offset(const T* v, int64_t rows, int64_t columns, T* sums, uint32_t* words) {
  constexpr int lanes = kLaneCount<T>;
  for (int64_t i = 0; i < rows; ++i) {
    Signs row;
    for (int64_t j = 0; j < columns; j += lanes) {
      const Lanes<T> value = load_lanes(v + i * kTile + j);
      const Signs bits = signs_of(value);
      row.positive |= bits.positive << j;
      row.negative |= bits.negative << j;
      T* target = sums + i * kTile + j;
      store_lanes<T>(target, load_lanes(target) + absolute<T>(value));
    }
    words[i] = row.positive;
    words[rows + i] = row.negative;
  }
}

// A vector that is -1 where bit `begin + lane` of the word is set.
template <class T>
auto lanes_of_word(uint32_t word, int64_t begin) {
  Lanes<Integer<T>> bit;
  for (int lane = 0; lane < kLaneCount<T>; ++lane) bit[lane] = Integer<T>{1} << lane;
  return (bit & static_cast<Integer<T>>(word >> begin)) != 0;
}

// A vector that is -1 where bit `bit` of words[lane] is set.
template <class T>
auto lanes_of_column(const uint32_t* words, int64_t bit) {
  Lanes<Integer<T>> value;
  for (int lane = 0; lane < kLaneCount<T>; ++lane) value[lane] = static_cast<int32_t>(words[lane]);
  return (value & static_cast<Integer<T>>(uint32_t{1} << bit)) != 0;
}

// target[j][i] = sign · factor[j][i] for one offset, where 0 · inf is 0. The words of the sign planes belong to rows
// of j (bits i), or transposed to rows of i (bits j).
template <class T, bool transposed>
void apply_signs(const T* factor, const uint32_t* words, int64_t planes, int64_t rows, int64_t columns, T* target) {
  constexpr int lanes = kLaneCount<T>;
  uint32_t plane[2][kTile] = {};
  const int64_t count = transposed ? columns : rows;
  for (int64_t n = 0; n < count; ++n) plane[0][n] = words[n], plane[1][n] = words[planes + n];
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t i = 0; i < columns; i += lanes) {
      const Lanes<T> value = load_lanes(factor + j * kTile + i), zero = {};
      if constexpr (transposed) {
        const auto positive = lanes_of_column<T>(plane[0] + i, j), negative = lanes_of_column<T>(plane[1] + i, j);
        store_lanes<T>(target + j * kTile + i, positive ? value : (negative ? -value : zero));
      } else {
        const auto positive = lanes_of_word<T>(plane[0][j], i), negative = lanes_of_word<T>(plane[1][j], i);
        store_lanes<T>(target + j * kTile + i, positive ? value : (negative ? -value : zero));
      }
    }
  }
}

// e^x to about one unit in the last place; overflows to inf and underflows through the subnormals to 0, as std::exp.
inline Lanes<float> exponential(Lanes<float> x) {
  using V = Lanes<float>;
  using I = Lanes<int32_t>;
  const V low = V{} - 104.0f, high = V{} + 90.0f;
  x = x < low ? low : (x > high ? high : x);
  const V magic = V{} + 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const V n = (x * 1.44269504f + magic) - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n = 129 and n = -150 have no single one.
  const I whole = __builtin_convertvector(n, I), half = whole >> 1;
  const I first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return p * reinterpret_cast<V>(first) * reinterpret_cast<V>(second);
}

inline Lanes<double> exponential(Lanes<double> x) {
  for (int lane = 0; lane < kLaneCount<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// The entries of a vector that belong to one tile's channels, padded with zeros; all zero for null.
template <class T>
struct TileVector {
  T value[kTile] = {};
  TileVector(const T* source, int64_t width) {
    if (source != nullptr) std::copy_n(source, width, value);
  }
};

template <class T>
T horizontal_sum(Lanes<T> x) {
  T value[kLaneCount<T>];
  store_lanes(value, x);
#pragma GCC unroll 4
  for (int half = kLaneCount<T> / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) value[lane] += value[lane + half];
  }
  return value[0];
}

// row_sum[i] = Σ_j A_ij e^{ψ_j - ψ_i}, and if wanted column_sum[j] = Σ_i A_ij e^{ψ_i - ψ_j}. A pair with A = 0 counts
// as 0 although e overflows.
template <class T>
void weigh(const T* sums, const TileVector<T>* psi_i, const TileVector<T>* psi_j, int64_t rows, int64_t columns, T* row_sum,
           T* column_sum) {
  constexpr int lanes = kLaneCount<T>;
  const Lanes<T> zero = {};
  T column[kTile] = {};
  for (int64_t i = 0; i < rows; ++i) {
    Lanes<T> row = {};
    for (int64_t j = 0; j < columns; j += lanes) {
      const Lanes<T> a = load_lanes(sums + i * kTile + j);
      Lanes<T> along = a, across = a;
      if (psi_i != nullptr) {
        const Lanes<T> difference = load_lanes(psi_j->value + j) - psi_i->value[i];
        along = a == 0 ? zero : a * exponential(difference);
        if (column_sum != nullptr) across = a == 0 ? zero : a * exponential(-difference);
      }
      row += along;
      store_lanes<T>(column + j, load_lanes(column + j) + across);
    }
    row_sum[i] = horizontal_sum<T>(row);
  }
  if (column_sum != nullptr) std::copy_n(column, columns, column_sum);
}

// factor[j][i] = r̄_i e^{ψ_j - ψ_i} + r̄_j e^{ψ_i - ψ_j}: the derivative of the loss with respect to A_ij.
template <class T>
void gradient_factor(const T* gradient_i, const T* gradient_j, const TileVector<T>* psi_i, const TileVector<T>* psi_j,
                     int64_t rows, int64_t columns, T* factor) {
  constexpr int lanes = kLaneCount<T>;
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t i = 0; i < columns; i += lanes) {
      const Lanes<T> gradient = load_lanes(gradient_i + i);
      Lanes<T> value = gradient + gradient_j[j];
      if (psi_i != nullptr) {
        const Lanes<T> difference = psi_j->value[j] - load_lanes(psi_i->value + i);
        value = gradient * exponential(difference) + gradient_j[j] * exponential(-difference);
      }
      store_lanes<T>(factor + j * kTile + i, value);
    }
  }
}

}  // namespace fastlip::gram_rowsum

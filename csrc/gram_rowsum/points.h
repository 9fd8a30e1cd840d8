// The Gram operator of a 3 x 3 kernel from fewer products than it has pairs of overlapping taps.
//
// In one dimension, with w(z) = w_0 + w_1 z + w_2 z² and P(z) = w(1/z)ᵀ w(z) = Σ_δ G_δ z^δ, G_{-δ} = G_δᵀ:
//   G_2 = w_0ᵀ w_2,    P(1) + P(-1) = 2 (G_0 + G_2 + G_2ᵀ),    P(1) - P(-1) = 2 (G_1 + G_1ᵀ),
//   G_1 - G_1ᵀ = M - Mᵀ  with  M = (w_0 - w_2)ᵀ w_1,
// and P(1) and P(-1) are symmetric. If the two factors differ, six products give the five sums C_δ = Σ_τ a_τᵀ b_{τ+δ}:
//   C_2 = a_0ᵀ b_2,    C_{-2} = a_2ᵀ b_0,    a(±1)ᵀ b(±1),    C_1 - C_{-1} = (a_0 - a_2)ᵀ b_1 - a_1ᵀ (b_0 - b_2).
// In two dimensions the rows of taps take the places of w_0, w_1, w_2: 4 symmetric products and 16 others.
#pragma once

#include <cstdint>

#include "common/gemm.h"
#include "gram_rowsum/geometry.h"

namespace fastlip::gram_rowsum {

// The six sums of three taps that the products need.
enum Sum : int { kPlus, kMinus, kFirst, kLast, kDifference, kMiddle, kSums };

constexpr int kSumPanels = kSums * kSums;  // a panel for each sum of rows and sum of columns
constexpr int kSymmetric = 4;
constexpr int kOthers = 16;
constexpr int kProducts = kSymmetric + 2 * kOthers;  // each of the others for (i, j) and, transposed, for (j, i)
constexpr int kLags = 25;

struct SumPair {
  int left;
  int right;
};

constexpr int sum_panel(int row, int column) { return row * kSums + column; }

struct ProductTable {
  SumPair pairs[kSymmetric + kOthers];
};

// The symmetric products first, then two for each symmetric sum of rows, and six for each of the other pairs of rows.
constexpr ProductTable product_table() {
  ProductTable table{};
  int n = 0;
  for (int row : {kPlus, kMinus}) {
    for (int column : {kPlus, kMinus}) table.pairs[n++] = {sum_panel(row, column), sum_panel(row, column)};
  }
  for (int row : {kPlus, kMinus}) {
    table.pairs[n++] = {sum_panel(row, kFirst), sum_panel(row, kLast)};
    table.pairs[n++] = {sum_panel(row, kDifference), sum_panel(row, kMiddle)};
  }
  constexpr SumPair rows[] = {{kFirst, kLast}, {kDifference, kMiddle}};
  constexpr SumPair columns[] = {{kPlus, kPlus}, {kMinus, kMinus}, {kFirst, kLast},
                                 {kLast, kFirst}, {kDifference, kMiddle}, {kMiddle, kDifference}};
  for (SumPair row : rows) {
    for (SumPair column : columns) {
      table.pairs[n++] = {sum_panel(row.left, column.left), sum_panel(row.right, column.right)};
    }
  }
  return table;
}

template <class V>
inline void six_sums(V w0, V w1, V w2, V* sums) {
  const V outer = w0 + w2;
  sums[kPlus] = outer + w1;
  sums[kMinus] = outer - w1;
  sums[kFirst] = w0;
  sums[kLast] = w2;
  sums[kDifference] = w0 - w2;
  sums[kMiddle] = w1;
}

// From panels [tap][rows][kTile] to panels [sum of rows][sum of columns][rows][kTile], `count` rows of them.
template <class T>
void expand(const T* taps, int64_t rows, int64_t count, T* target) {
  constexpr int lanes = kLaneCount<T>;
  const int64_t panel = rows * kTile;
  for (int64_t at = 0; at < count * kTile; at += lanes) {
    Lanes<T> by_rows[3][kSums], sums[kSums];
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) {
      six_sums(load_lanes(taps + x * panel + at), load_lanes(taps + (3 + x) * panel + at),
               load_lanes(taps + (6 + x) * panel + at), by_rows[x]);
    }
#pragma GCC unroll 6
    for (int row = 0; row < kSums; ++row) {
      six_sums(by_rows[0][row], by_rows[1][row], by_rows[2][row], sums);
#pragma GCC unroll 6
      for (int column = 0; column < kSums; ++column) {
        store_lanes<T>(target + sum_panel(row, column) * panel + at, sums[column]);
      }
    }
  }
}

// The five lags -2 to 2 of a row of taps with itself: two symmetric products, G_2 and M, and both transposed.
template <class V>
inline void own_lags(V plus, V minus, V last, V last_t, V middle, V middle_t, V* lags) {
  const V even = (plus + minus) * 0.5f, odd = (plus - minus) * 0.25f, skew = (middle - middle_t) * 0.5f;
  lags[0] = last_t;
  lags[1] = odd - skew;
  lags[2] = even - last - last_t;
  lags[3] = odd + skew;
  lags[4] = last;
}

// The five lags of one row of taps with another, from their six products.
template <class V>
inline void other_lags(const V* product, V* lags) {
  const V even = (product[0] + product[1]) * 0.5f, odd = (product[0] - product[1]) * 0.25f;
  const V skew = (product[4] - product[5]) * 0.5f;
  lags[0] = product[3];
  lags[1] = odd - skew;
  lags[2] = even - product[2] - product[3];
  lags[3] = odd + skew;
  lags[4] = product[2];
}

// v[i, j, δ] of one vector of a tile for all 25 lags δ, from its products, each a tile; `at` is the vector's place.
template <class T>
inline void lags_of(const T* products, int64_t at, Lanes<T>* lags) {
  using V = Lanes<T>;
  const auto product = [&](int n) { return load_lanes(products + n * kTileSize + at); };
  const auto transposed = [&](int n) { return product(kOthers + n); };
  V own[2][5], last[5], last_t[5], middle[5], middle_t[5], six[6];
  for (int row = 0; row < 2; ++row) {
    const int g = kSymmetric + 2 * row, m = g + 1;
    own_lags(product(2 * row), product(2 * row + 1), product(g), transposed(g), product(m), transposed(m), own[row]);
  }
  const auto pair_of_rows = [&](int first, V* target) {
#pragma GCC unroll 6
    for (int n = 0; n < 6; ++n) six[n] = product(first + n);
    other_lags(six, target);
  };
  pair_of_rows(8, last);
  pair_of_rows(8 + kOthers, last_t);
  pair_of_rows(14, middle);
  pair_of_rows(14 + kOthers, middle_t);
#pragma GCC unroll 5
  for (int x = 0; x < 5; ++x) {
    const V even = (own[0][x] + own[1][x]) * 0.5f, odd = (own[0][x] - own[1][x]) * 0.25f;
    const V skew = (middle[x] - middle_t[4 - x]) * 0.5f;
    lags[x] = last_t[4 - x];
    lags[5 + x] = odd - skew;
    lags[10 + x] = even - last[x] - last_t[4 - x];
    lags[15 + x] = odd + skew;
    lags[20 + x] = last[x];
  }
}

}  // namespace fastlip::gram_rowsum

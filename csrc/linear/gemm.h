// C = alpha A B, or C + alpha A B, from panels of both factors: a strip of B stays in the nearest cache while all of A's
// tiles pass by. Torch's products of real matrices take 32-byte vectors on processors that are not Intel's; these take the
// widest that there are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/transpose.h"

namespace fastlip::linear {

constexpr int64_t kLength = 192;  // of the sums of one pass over C: a strip of B takes 24 KiB
constexpr int64_t kRows = kPanelRows;
template <class T>
constexpr int64_t kStrip = kPanelVectors * kLaneCount<T>;

// A matrix by its first element and the distances of neighbours in a column and in a row, one of which is 1.
template <class T>
struct View {
  const T* data;
  int64_t down;
  int64_t right;

  const T* at(int64_t i, int64_t j) const { return data + i * down + j * right; }
  View adjoint() const { return {data, right, down}; }
};

// panel[l][j] = b(l, j) for l < length and `width` columns, of which `columns` exist; the others are 0.
template <class T, int64_t width>
void pack(const View<T>& b, int64_t length, int64_t columns, T* panel) {
  constexpr int64_t lanes = kLaneCount<T>;
  if (b.right == 1) {
    for (int64_t l = 0; l < length; ++l, panel += width) {
      const T* source = b.at(l, 0);
      if (columns == width) {
        for (int64_t j = 0; j < width; ++j) panel[j] = source[j];
      } else {
        for (int64_t j = 0; j < width; ++j) panel[j] = j < columns ? source[j] : T{0};
      }
    }
    return;
  }
  int64_t l = 0;
  if constexpr (width % lanes == 0) {
    for (; l + lanes <= length; l += lanes) {
      for (int64_t j = 0; j < width; j += lanes) {
        Lanes<T> square[lanes];
        for (int64_t i = 0; i < lanes; ++i) {
          square[i] = j + i < columns ? load_lanes(b.at(l, j + i)) : Lanes<T>{};
        }
        transpose<T>(square);
        for (int64_t i = 0; i < lanes; ++i) store_lanes(panel + (l + i) * width + j, square[i]);
      }
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = l; i < length; ++i) panel[i * width + j] = j < columns ? *b.at(i, j) : T{0};
  }
}

// The sums of one tile: kRows rows and a strip of columns.
template <class T>
struct Tile {
  Lanes<T> sum[kRows][kPanelVectors] = {};

  Tile(const T* a, const T* b, int64_t length) {
    constexpr int lanes = kLaneCount<T>;
#pragma GCC unroll 2
    for (int64_t l = 0; l < length; ++l, a += kRows, b += kStrip<T>) {
      Lanes<T> value[kPanelVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; ++v) value[v] = load_lanes(b + v * lanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kPanelVectors; ++v) sum[r][v] += a[r] * value[v];
      }
    }
  }

  // target = alpha sum + what it holds, or the bias, or nothing.
  void store(T* target, int64_t step, int64_t rows, int64_t columns, T alpha, bool add, const T* bias) const {
    constexpr int lanes = kLaneCount<T>;
    if (rows == kRows && columns == kStrip<T>) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kPanelVectors; ++v) {
          T* at = target + r * step + v * lanes;
          const Lanes<T> before = add ? load_lanes(at) : bias != nullptr ? load_lanes(bias + v * lanes) : Lanes<T>{};
          store_lanes<T>(at, before + alpha * sum[r][v]);
        }
      }
      return;
    }
    T part[kRows * kStrip<T>];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; ++v) store_lanes<T>(part + r * kStrip<T> + v * lanes, sum[r][v]);
    }
    for (int64_t r = 0; r < rows; ++r, target += step) {
      for (int64_t j = 0; j < columns; ++j) {
        target[j] = (add ? target[j] : bias != nullptr ? bias[j] : T{0}) + alpha * part[r * kStrip<T> + j];
      }
    }
  }
};

// C (rows x columns) in rows that are `step` apart; A is rows x length, B length x columns.
template <class T>
void gemm(const View<T>& a, const View<T>& b, T* c, int64_t step, int64_t rows, int64_t columns, int64_t length,
          T alpha, bool add, const T* bias) {
  constexpr int64_t kMostRows = 512;
  const int64_t strips = (columns + kStrip<T> - 1) / kStrip<T>;
  const bool parallel = rows * columns * length > 64 * 64 * 64;
  T* left = scratch<T, struct LeftPanels>((std::min(kMostRows, rows) + kRows) * kLength);
  for (int64_t from = 0; from < length; from += kLength) {
    const int64_t terms = std::min(kLength, length - from);
    for (int64_t top = 0; top < rows; top += kMostRows) {
      const int64_t height = std::min(kMostRows, rows - top), tiles = (height + kRows - 1) / kRows;
      parallel_jobs(tiles, parallel, [&](int64_t tile) {
        const View<T> part{a.at(top + tile * kRows, from), a.down, a.right};
        pack<T, kRows>(part.adjoint(), terms, std::min(kRows, height - tile * kRows), left + tile * kRows * terms);
      });
      parallel_jobs(strips, parallel, [&](int64_t strip) {
        const int64_t j = strip * kStrip<T>, width = std::min(kStrip<T>, columns - j);
        T* right = scratch<T, struct RightPanel>(kStrip<T> * kLength);
        pack<T, kStrip<T>>({b.at(from, j), b.down, b.right}, terms, width, right);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t i = tile * kRows;
          const Tile<T> sums(left + i * terms, right, terms);
          sums.store(c + (top + i) * step + j, step, std::min(kRows, height - i), width, alpha, add || from > 0,
                     bias == nullptr ? nullptr : bias + j);
        }
      });
    }
  }
}

}  // namespace fastlip::linear

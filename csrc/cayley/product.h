// Products of planar matrices, from register-blocked tiles of a few rows by two vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cayley/planar.h"
#include "common/gemm.h"
#include "common/parallel.h"

namespace fastlip::cayley {

// Each complex product is four real ones into two sums, so that half the rows fill as many registers.
template <bool complex>
constexpr int64_t kTileRows = complex ? kPanelRows / 2 : kPanelRows;
template <class T>
constexpr int64_t kStrip = kPanelVectors * kLaneCount<T>;

// The element at a corner of a part of a matrix, with the matrix's strides.
template <class T>
struct Part {
  T* data;
  int64_t row;
  int64_t plane;

  Part at(int64_t i, int64_t j) const { return {data + i * row + j, row, plane}; }
  operator Part<const T>() const { return {data, row, plane}; }
};

template <class T, bool complex>
Part<T> part(const Planar<T, complex>& matrix, int64_t i, int64_t j) {
  return {matrix.at(i, j), matrix.row, matrix.plane};
}

template <class T>
using LaneIndex = Lanes<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

template <class T>
inline LaneIndex<T> lane_index(int64_t first) {
  LaneIndex<T> lane;
  for (int i = 0; i < kLaneCount<T>; ++i) lane[i] = static_cast<int32_t>(first) + i;
  return lane;
}

// Columns [begin, end) of a tile of C count as 0 before the product is added.
struct Cleared {
  int64_t begin;
  int64_t end;
};
constexpr Cleared kNone{0, 0};
template <class T>
constexpr Cleared kAll{0, kStrip<T>};

// C += sign A B for `rows` rows and `vectors` vectors of columns; A has `length` columns.
template <class T, bool complex, int rows, int vectors>
inline void multiply_tile(const Part<T>& c, const Part<const T>& a, const Part<const T>& b, int64_t length,
                          const Cleared& cleared, T sign) {
  constexpr int lanes = kLaneCount<T>;
  Lanes<T> re[rows][vectors] = {}, im[rows][vectors] = {};
  const T *pa = a.data, *pb = b.data;
  for (int64_t l = 0; l < length; ++l, ++pa, pb += b.row) {
    Lanes<T> b_re[vectors], b_im[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      b_re[v] = load_lanes(pb + v * lanes);
      if constexpr (complex) b_im[v] = load_lanes(pb + b.plane + v * lanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const T a_re = pa[r * a.row];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) re[r][v] += a_re * b_re[v];
      if constexpr (complex) {
        const T a_im = pa[r * a.row + a.plane];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          im[r][v] += a_re * b_im[v];
          re[r][v] -= a_im * b_im[v];
          im[r][v] += a_im * b_re[v];
        }
      }
    }
  }
  const bool all = cleared.begin == 0 && cleared.end >= vectors * lanes;
  const Lanes<T> zero = {};
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const LaneIndex<T> lane = lane_index<T>(v * lanes);
    const auto clear = (lane >= static_cast<int32_t>(cleared.begin)) & (lane < static_cast<int32_t>(cleared.end));
    const auto kept = [&](const T* target) { return all ? zero : clear ? zero : load_lanes(target); };
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      T* target = c.data + r * c.row + v * lanes;
      store_lanes<T>(target, kept(target) + sign * re[r][v]);
      if constexpr (complex) store_lanes<T>(target + c.plane, kept(target + c.plane) + sign * im[r][v]);
    }
  }
}

// The same for up to kTileRows rows and kPanelVectors vectors.
template <class T, bool complex, int most = kTileRows<complex>>
inline void multiply_tile(int64_t rows, int64_t vectors, const Part<T>& c, const Part<const T>& a,
                          const Part<const T>& b, int64_t length,
                          const Cleared& cleared, T sign) {
  static_assert(kPanelVectors == 2);
  if constexpr (most > 1) {
    if (rows < most) return multiply_tile<T, complex, most - 1>(rows, vectors, c, a, b, length, cleared, sign);
  }
  if (vectors == 2) {
    multiply_tile<T, complex, most, 2>(c, a, b, length, cleared, sign);
  } else {
    multiply_tile<T, complex, most, 1>(c, a, b, length, cleared, sign);
  }
}

// The same for any number of rows.
template <class T, bool complex>
void multiply_rows(int64_t rows, int64_t vectors, Part<T> c, Part<const T> a, const Part<const T>& b, int64_t length,
                   const Cleared& cleared, T sign) {
  constexpr int64_t kRows = kTileRows<complex>;
  for (; rows > 0; rows -= kRows, c.data += kRows * c.row, a.data += kRows * a.row) {
    multiply_tile<T, complex>(std::min(kRows, rows), vectors, c, a, b, length, cleared, sign);
  }
}

// C = (add ? C : 0) + sign A B for A of `rows` x `length` and B of `length` x `columns`. C is neither A nor B.
template <class T, bool complex>
void multiply(const Planar<T, complex>& c, const Planar<T, complex>& a, const Planar<T, complex>& b, int64_t rows,
              int64_t columns, int64_t length, bool add, T sign, bool parallel) {
  constexpr int64_t kLength = 64;  // that many rows of B of one strip stay in the first-level cache
  parallel_jobs((columns + kStrip<T> - 1) / kStrip<T>, parallel, [&](int64_t strip) {
    const int64_t j = strip * kStrip<T>, vectors = std::min(kStrip<T>, c.plane - j) / kLaneCount<T>;
    for (int64_t l = 0; l < length; l += kLength) {
      multiply_rows<T, complex>(rows, vectors, part(c, 0, j), part(a, 0, l), part(b, l, j),
                                std::min(kLength, length - l), add || l > 0 ? kNone : kAll<T>, sign);
    }
  });
}

}  // namespace fastlip::cayley

// Products of planar matrices, from register-blocked tiles of a few rows by two vectors.
//
// Large products copy their factors to panels, and complex ones take three real products instead of four: with
// A = P + iS and B = R + iT, AB = PR - ST + i((P + S)(R + T) - PR - ST), the panels hold P, S and P + S.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "linalg/planar.h"

namespace fastlip::linalg {

template <bool complex>
constexpr int64_t kTileRows = complex ? kPanelRows / 2 : kPanelRows;
template <class T>
constexpr int64_t kStrip = kPanelVectors * kLaneCount<T>;
constexpr int64_t kMaxLength = 32;  // of the sums of one pass over C: panels of two strips stay in the nearest cache

// A part of a planar matrix, by its first element.
template <class T>
struct Part {
  T* data;
  int64_t row;
  int64_t plane;

  Part at(int64_t i, int64_t j) const { return {data + i * row + j, row, plane}; }
  operator Part<const T>() const { return {data, row, plane}; }
};

template <class T, bool complex>
Part<T> whole(const Planar<T, complex>& matrix) {
  return {matrix.data, matrix.row, matrix.plane};
}

// Columns [begin, end) of a tile of C count as 0 before a product is added to it.
struct Cleared {
  int64_t begin;
  int64_t end;
};
constexpr Cleared kNone{0, 0};
template <class T>
constexpr Cleared kAll{0, kStrip<T>};

template <class T>
using LaneIndex = Lanes<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

template <class T>
inline LaneIndex<T> lane_index(int64_t first) {
  LaneIndex<T> lane;
  for (int i = 0; i < kLaneCount<T>; ++i) lane[i] = static_cast<int32_t>(first) + i;
  return lane;
}

// C += sign * (re + i im), for the first `rows` rows.
template <class T, bool complex, int most, int vectors>
inline void add_tile(const Part<T>& c, int64_t rows, const Lanes<T> (&re)[most][vectors],
                     const Lanes<T> (&im)[most][vectors], const Cleared& cleared, T sign) {
  constexpr int lanes = kLaneCount<T>;
  const bool all = cleared.begin == 0 && cleared.end >= vectors * lanes;
  const Lanes<T> zero = {};
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const LaneIndex<T> lane = lane_index<T>(v * lanes);
    const auto clear = (lane >= static_cast<int32_t>(cleared.begin)) & (lane < static_cast<int32_t>(cleared.end));
    const auto kept = [&](const T* target) { return all ? zero : clear ? zero : load_lanes(target); };
#pragma GCC unroll 8
    for (int r = 0; r < most; ++r) {
      if (r >= rows) break;
      T* target = c.data + r * c.row + v * lanes;
      store_lanes<T>(target, kept(target) + sign * re[r][v]);
      if constexpr (complex) store_lanes<T>(target + c.plane, kept(target + c.plane) + sign * im[r][v]);
    }
  }
}

// C += sign A B for a tile of `rows` rows and `vectors` vectors of columns, from matrices as they are; A has `length`
// columns.
template <class T, bool complex, int rows, int vectors>
inline void multiply_in_place(const Part<T>& c, const Part<const T>& a, const Part<const T>& b, int64_t length,
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
  add_tile<T, complex, rows, vectors>(c, rows, re, im, cleared, sign);
}

// The same for up to kTileRows rows and kPanelVectors vectors.
template <class T, bool complex, int most = kTileRows<complex>>
inline void multiply_in_place(int64_t rows, int64_t vectors, const Part<T>& c, const Part<const T>& a,
                              const Part<const T>& b, int64_t length, const Cleared& cleared, T sign) {
  if constexpr (most > 1) {
    if (rows < most) return multiply_in_place<T, complex, most - 1>(rows, vectors, c, a, b, length, cleared, sign);
  }
  (vectors == 2 ? multiply_in_place<T, complex, most, 2> : multiply_in_place<T, complex, most, 1>)(c, a, b, length,
                                                                                                   cleared, sign);
}

template <bool complex>
constexpr int64_t kParts = complex ? 3 : 1;

// A left factor of up to kMaxLength columns, as [tile][part][row of the tile][column]; a strip of a right factor, as
// [row][part][column]. Rows that fill up the last tile are 0.
template <bool complex>
constexpr int64_t kLeftTile = kTileRows<complex> * kParts<complex> * kMaxLength;
template <class T, bool complex>
constexpr int64_t kRightPanel = kParts<complex> * kStrip<T> * kMaxLength;

template <bool complex>
int64_t left_panel_size(int64_t rows) {
  return (rows + kTileRows<complex> - 1) / kTileRows<complex> * kLeftTile<complex>;
}

template <class T, bool complex>
inline void copy_parts(const T* source, int64_t plane, int64_t count, T* target, int64_t target_plane) {
  for (int64_t j = 0; j < count; ++j) {
    target[j] = source[j];
    if constexpr (complex) {
      target[target_plane + j] = source[plane + j];
      target[2 * target_plane + j] = source[j] + source[plane + j];
    }
  }
}

template <class T, bool complex>
void pack_left(const Part<const T>& part, int64_t rows, int64_t length, T* panel) {
  constexpr int64_t kRows = kTileRows<complex>;
  std::fill(panel + rows / kRows * kLeftTile<complex>, panel + left_panel_size<complex>(rows), T{0});
  for (int64_t i = 0; i < rows; ++i) {
    T* target = panel + i / kRows * kLeftTile<complex> + i % kRows * kMaxLength;
    copy_parts<T, complex>(part.data + i * part.row, part.plane, length, target, kRows * kMaxLength);
  }
}

template <class T, bool complex>
void pack_right(const Part<const T>& part, int64_t rows, int64_t vectors, T* panel) {
  for (int64_t i = 0; i < rows; ++i, panel += kParts<complex> * kStrip<T>) {
    copy_parts<T, complex>(part.data + i * part.row, part.plane, vectors * kLaneCount<T>, panel, kStrip<T>);
  }
}

// C += sign A B for a tile, from panels.
template <class T, bool complex, int vectors>
inline void multiply_tile(const Part<T>& c, int64_t rows, const T* a, const T* b, int64_t length,
                          const Cleared& cleared, T sign) {
  constexpr int kRows = kTileRows<complex>, lanes = kLaneCount<T>;
  constexpr int64_t kStep = kParts<complex> * kStrip<T>;
  Lanes<T> sum[kParts<complex>][kRows][vectors] = {};
  for (int64_t l = 0; l < length; ++l, ++a, b += kStep) {
#pragma GCC unroll 3
    for (int p = 0; p < kParts<complex>; ++p) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          sum[p][r][v] += a[(p * kRows + r) * kMaxLength] * load_lanes(b + p * kStrip<T> + v * lanes);
        }
      }
    }
  }
  if constexpr (complex) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const Lanes<T> difference = sum[2][r][v] - sum[0][r][v];
        sum[0][r][v] -= sum[1][r][v];
        sum[1][r][v] = difference - sum[1][r][v];
      }
    }
    add_tile<T, true, kRows, vectors>(c, rows, sum[0], sum[1], cleared, sign);
  } else {
    add_tile<T, false, kRows, vectors>(c, rows, sum[0], sum[0], cleared, sign);
  }
}

// The same for any number of rows.
template <class T, bool complex>
void multiply_panels(Part<T> c, int64_t rows, int64_t vectors, const T* a, const T* b, int64_t length,
                     const Cleared& cleared, T sign) {
  static_assert(kPanelVectors == 2);
  constexpr int64_t kRows = kTileRows<complex>;
  for (; rows > 0; rows -= kRows, c = c.at(kRows, 0), a += kLeftTile<complex>) {
    (vectors == 2 ? multiply_tile<T, complex, 2> : multiply_tile<T, complex, 1>)(c, std::min(kRows, rows), a, b, length,
                                                                                cleared, sign);
  }
}

// C = (add ? C : 0) + sign A B for A of `rows` x `length` and B of `length` x `columns`. C is neither A nor B. Where only
// its upper half is wanted, what stands below strips of the diagonal is left as it is.
template <class T, bool complex, bool upper = false>
void multiply(const Planar<T, complex>& c, const Planar<T, complex>& a, const Planar<T, complex>& b, int64_t rows,
              int64_t columns, int64_t length, bool add, T sign, bool parallel) {
  const int64_t passes = (length + kMaxLength - 1) / kMaxLength, size = left_panel_size<complex>(rows);
  const auto terms = [&](int64_t pass) { return std::min(kMaxLength, length - pass * kMaxLength); };
  T* left = scratch<T, struct LeftPanel>(passes * size);
  parallel_jobs(passes, parallel, [&](int64_t pass) {
    pack_left<T, complex>(whole(a).at(0, pass * kMaxLength), rows, terms(pass), left + pass * size);
  });
  // All of a strip at once: its part of C stays with one core.
  parallel_jobs((columns + kStrip<T> - 1) / kStrip<T>, parallel, [&](int64_t strip) {
    const int64_t j = strip * kStrip<T>, vectors = std::min(kStrip<T>, c.plane - j) / kLaneCount<T>;
    T* right = scratch<T, struct RightPanel>(kRightPanel<T, complex>);
    for (int64_t pass = 0; pass < passes; ++pass) {
      pack_right<T, complex>(whole(b).at(pass * kMaxLength, j), terms(pass), vectors, right);
      multiply_panels<T, complex>(whole(c).at(0, j), upper ? std::min(rows, j + kStrip<T>) : rows, vectors,
                                  left + pass * size, right, terms(pass), add || pass > 0 ? kNone : kAll<T>, sign);
    }
  });
}

}  // namespace fastlip::linalg

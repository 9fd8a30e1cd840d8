// Kernels as block_conv holds them: a matrix of `rows` x `columns` at each tap.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/transpose.h"

namespace fastlip::block_conv {

template <class T>
constexpr int64_t kStrip = kPanelVectors * kLaneCount<T>;

constexpr int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
constexpr int64_t round_up(int64_t value, int64_t by) { return divide_up(value, by) * by; }

// How many vectors of a strip of columns are in use.
template <class T>
int64_t vectors_of(int64_t columns, int64_t strip) {
  return std::min<int64_t>(kPanelVectors, divide_up(columns - strip * kStrip<T>, kLaneCount<T>));
}

// Rows of one strip of columns at one tap: the part of a kernel that a pass works on.
template <class T>
struct Part {
  T* data;
  int64_t row;
  int64_t columns;  // as many as there are from here on

  Lanes<T> load(int64_t r, int64_t v) const {
    return load_first(data + r * row + v * kLaneCount<T>, columns - v * kLaneCount<T>);
  }
  void store(int64_t r, int64_t v, Lanes<T> value) const {
    store_first(data + r * row + v * kLaneCount<T>, value, columns - v * kLaneCount<T>);
  }
};

// Where the elements of a kernel are: those of a strip of columns are neighbours. Torch's layout is (tap, row, column);
// panels, (strip, tap, row, column of the strip), are what multiply_panels reads. Panels have whole tiles of rows and
// whole vectors of columns, filled up with 0.
template <class T>
struct View {
  T* data;
  int64_t rows;
  int64_t columns;
  int64_t tap;
  int64_t row;
  int64_t strip;

  static View plain(T* data, int64_t rows, int64_t columns) {
    return {data, rows, columns, rows * columns, columns, kStrip<T>};
  }
  static View panels(T* data, int64_t taps, int64_t rows, int64_t columns) {
    const int64_t tap = round_up(rows, kPanelRows) * kStrip<T>;
    return {data, tap / kStrip<T>, round_up(columns, kLaneCount<T>), tap, kStrip<T>, taps * tap};
  }
  static int64_t panels_size(int64_t taps, int64_t rows, int64_t columns) {
    return divide_up(columns, kStrip<T>) * taps * round_up(rows, kPanelRows) * kStrip<T>;
  }

  T* at(int64_t t, int64_t r, int64_t s) const { return data + t * tap + r * row + s * strip; }
  Part<T> part(int64_t t, int64_t r, int64_t s) const { return {at(t, r, s), row, columns - s * kStrip<T>}; }
};

// Calls visit(r, v) for the vectors of up to `rows` rows of a strip.
template <class Visit>
inline void for_vectors(int64_t rows, int64_t vectors, const Visit& visit) {
  static_assert(kPanelVectors == 2);
  for (int64_t r = 0; r < rows; ++r) {
    visit(r, 0);
    if (vectors == 2) visit(r, 1);
  }
}

constexpr int64_t kWorthThreads = 1 << 19;  // multiply-adds

// Copies one tap to panels.
template <class T>
void pack(const View<T>& source, const View<T>& target, int64_t t, bool parallel) {
  parallel_jobs(divide_up(source.columns, kStrip<T>), parallel, [&](int64_t s) {
    const Part<T> from = source.part(t, 0, s), to = target.part(t, 0, s), rest = target.part(t, source.rows, s);
    const int64_t vectors = vectors_of<T>(source.columns, s);
    for_vectors(source.rows, vectors, [=](int64_t r, int64_t v) { to.store(r, v, from.load(r, v)); });
    for_vectors(target.rows - source.rows, vectors, [=](int64_t r, int64_t v) { rest.store(r, v, Lanes<T>{}); });
  });
}

// Copies the transpose of a square matrix to panels.
template <class T>
void pack_transposed(const T* matrix, int64_t size, const View<T>& target, bool parallel) {
  constexpr int64_t lanes = kLaneCount<T>;
  parallel_jobs(divide_up(size, lanes), parallel, [&](int64_t job) {
    const int64_t i = job * lanes;
    for (int64_t j = 0; j < size; j += lanes) {
      Lanes<T> square[lanes] = {};
      for (int64_t r = 0; r < std::min(lanes, size - i); ++r) {
        square[r] = load_first(matrix + (i + r) * size + j, size - j);
      }
      transpose<T>(square);
      for (int64_t r = 0; r < std::min(lanes, size - j); ++r) {
        store_lanes<T>(target.at(0, j + r, i / kStrip<T>) + i % kStrip<T>, square[r]);
      }
    }
  });
}

}  // namespace fastlip::block_conv

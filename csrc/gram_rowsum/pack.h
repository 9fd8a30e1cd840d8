// Copies weights to panels [tap][row][kTile], in which the input channels of a tile are neighbours, and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/simd.h"
#include "common/transpose.h"
#include "gram_rowsum/geometry.h"

namespace fastlip::gram_rowsum {

// The first `count` lanes from memory, the others 0; nothing behind them is read.
template <class T>
inline Lanes<T> load_first(const T* source, int64_t count) {
  if (count >= kLaneCount<T>) return load_lanes(source);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Lanes<T>>(_mm512_maskz_loadu_ps(mask, source));
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Lanes<T>>(_mm512_maskz_loadu_pd(mask, source));
#else
  T value[kLaneCount<T>] = {};
  for (int64_t lane = 0; lane < count; ++lane) value[lane] = source[lane];
  return load_lanes(value);
#endif
}

template <class T>
inline void store_first(T* target, Lanes<T> value, int64_t count) {
  if (count >= kLaneCount<T>) return store_lanes(target, value);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(target, mask, reinterpret_cast<__m512>(value));
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(target, mask, reinterpret_cast<__m512d>(value));
#else
  for (int64_t lane = 0; lane < count; ++lane) target[lane] = value[lane];
#endif
}

// Where the weights of a tile lie: either channels are neighbours in memory, or (o, τ) form runs of neighbours.
struct Runs {
  bool channels;  // one row of the panel after another
  bool taps;      // `count` runs of `length` weights per channel, `stride` apart
  int64_t count;
  int64_t length;
  int64_t stride;

  Runs(const Strides& strides, int64_t outputs) : channels(strides.channel == 1), stride(strides.output) {
    const int64_t size = static_cast<int64_t>(strides.tap.size());
    const bool whole = strides.output == size;
    count = whole ? 1 : outputs;
    length = whole ? outputs * size : size;
    taps = length > 1;
    for (int64_t t = 0; t < size; ++t) taps = taps && strides.tap[t] == t;
  }
};

// Calls visit(j, at, row, channels, weights) for squares of up to kLaneCount channels by as many neighbouring weights:
// the channels from j on, the weights from `at` on, and for each weight where its row of the panel begins.
template <class T, class Visit>
inline void for_each_square(const Runs& runs, const Strides& stride, int64_t width, int64_t rows, const Visit& visit) {
  constexpr int64_t lanes = kLaneCount<T>;
  const int64_t taps = static_cast<int64_t>(stride.tap.size());
  for (int64_t run = 0; run < runs.count; ++run) {
    int64_t o = run, t = 0;
    for (int64_t e = 0; e < runs.length; e += lanes) {
      int64_t row[lanes];
      const int64_t weights = std::min(lanes, runs.length - e);
      for (int64_t lane = 0; lane < weights; ++lane) {
        row[lane] = (t * rows + o) * kTile;
        if (++t == taps) t = 0, ++o;
      }
      for (int64_t j = 0; j < kTile; j += lanes) {
        visit(j, run * runs.stride + e, row, std::clamp<int64_t>(width - j, 0, lanes), weights);
      }
    }
  }
}

// Copies `count` output channels of a tile to a panel; the channels and rows (up to whole blocks) that the weight does
// not fill become 0.
template <class T>
void pack(const T* weight, const Strides& stride, int64_t width, int64_t count, int64_t rows, T* panel) {
  constexpr int64_t lanes = kLaneCount<T>;
  const int64_t taps = static_cast<int64_t>(stride.tap.size());
  const Runs runs(stride, count);
  if (!runs.channels && runs.taps) {
    for_each_square<T>(runs, stride, width, rows, [&](int64_t j, int64_t at, const int64_t* row, int64_t channels,
                                                      int64_t weights) {
      Lanes<T> square[lanes] = {};
      for (int64_t i = 0; i < channels; ++i) square[i] = load_first(weight + at + (j + i) * stride.channel, weights);
      transpose<T>(square);
      for (int64_t e = 0; e < weights; ++e) store_lanes<T>(panel + row[e] + j, square[e]);
    });
  }
  for (int64_t t = 0; t < taps; ++t) {
    T* target = panel + t * rows * kTile;
    const T* source = weight + stride.tap[t];
    for (int64_t o = 0; o < count && runs.channels; ++o) {
      for (int64_t j = 0; j < kTile; j += lanes) {
        const int64_t at = o * stride.output + j, left = std::max<int64_t>(width - j, 0);
        store_lanes<T>(target + o * kTile + j, load_first(source + at, left));
      }
    }
    for (int64_t o = 0; o < count && !runs.channels && !runs.taps; ++o) {
      for (int64_t j = 0; j < kTile; ++j) {
        target[o * kTile + j] = j < width ? source[o * stride.output + j * stride.channel] : T{0};
      }
    }
    const int64_t end = (count + kPanelRows - 1) / kPanelRows * kPanelRows;
    std::fill(target + count * kTile, target + end * kTile, T{0});
  }
}

// The inverse of pack.
template <class T>
void unpack(const T* panel, const Strides& stride, int64_t width, int64_t count, int64_t rows, T* weight) {
  constexpr int64_t lanes = kLaneCount<T>;
  const Runs runs(stride, count);
  if (!runs.channels && runs.taps) {
    for_each_square<T>(runs, stride, width, rows, [&](int64_t j, int64_t at, const int64_t* row, int64_t channels,
                                                      int64_t weights) {
      Lanes<T> square[lanes] = {};
      for (int64_t e = 0; e < weights; ++e) square[e] = load_lanes(panel + row[e] + j);
      transpose<T>(square);
      for (int64_t i = 0; i < channels; ++i) store_first<T>(weight + at + (j + i) * stride.channel, square[i], weights);
    });
    return;
  }
  for (size_t t = 0; t < stride.tap.size(); ++t) {
    for (int64_t o = 0; o < count; ++o) {
      const T* source = panel + (static_cast<int64_t>(t) * rows + o) * kTile;
      T* target = weight + stride.tap[t] + o * stride.output;
      if (runs.channels) {
        std::copy_n(source, width, target);
      } else {
        for (int64_t j = 0; j < width; ++j) target[j * stride.channel] = source[j];
      }
    }
  }
}

}  // namespace fastlip::gram_rowsum

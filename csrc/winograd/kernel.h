// The transformed kernel, one matrix for each of the products, and kernels from sums of products.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/parallel.h"
#include "winograd/tiles.h"

namespace fastlip::winograd {

// Where the taps of a kernel lie: (outputs, inputs, 3, 3), or those of the adjoint convolution, whose inputs are the
// other's outputs and whose taps are flipped.
struct Taps {
  int64_t inputs, outputs;
  bool adjoint;

  int64_t offset(int64_t input, int64_t output, int64_t y, int64_t x) const {
    const int64_t row = adjoint ? input * outputs + output : output * inputs + input;
    return (row * kTaps + (adjoint ? kTaps - 1 - y : y)) * kTaps + (adjoint ? kTaps - 1 - x : x);
  }
};

// Matrices (inputs, outputs) for all products, as [product][kWide outputs][input][output]. As in a block, products are one
// vector further apart than they need.
template <class F, class T>
struct Matrices {
  T* data;
  int64_t inputs, outputs;  // inputs with whole panels of rows

  Matrices(T* memory, int64_t input_channels, int64_t output_channels)
      : data(memory), inputs(parts(input_channels, kPanelRows) * kPanelRows), outputs(output_channels) {}

  static int64_t size(int64_t input_channels, int64_t outputs) {
    return F::kProducts * Matrices(nullptr, input_channels, outputs).stride();
  }
  int64_t stride() const { return parts(outputs, kWide<T>) * inputs * kWide<T> + kLaneCount<T>; }
  T* at(int64_t product, int64_t group, int64_t input) const {
    return data + product * stride() + (group * inputs + input) * kWide<T>;
  }
};

// Transforms between taps and products run in double precision, some outputs at a time.
using Doubles = Lanes<double>;
constexpr int64_t kDoubles = kLaneCount<double>;

// Calls visit(input, first output) for all inputs and for every kDoubles of so many outputs, those of a group together.
template <class F, class T, class Visit>
inline void for_outputs(const Taps& taps, int64_t outputs, int64_t copies, const Visit& visit) {
  const int64_t numbers = F::kProducts * kWide<T> * copies;
  parallel_pairs(parts(outputs, kWide<T>), taps.inputs, numbers, [&](int64_t group, int64_t input) {
    const int64_t last = std::min(outputs, (group + 1) * kWide<T>);
    for (int64_t output = group * kWide<T>; output < last; output += kDoubles) visit(input, output);
  });
}

// G g Gᵀ for every pair of channels; the outputs that fill up a group get zeros.
template <class F, class T>
inline void transform_kernel(const T* kernel, const Taps& taps, const Matrices<F, T>& result) {
  for_outputs<F, T>(taps, parts(taps.outputs, kWide<T>) * kWide<T>, 1, [&](int64_t input, int64_t output) {
    const int64_t used = std::clamp<int64_t>(taps.outputs - output, 0, kDoubles);
    const int64_t next = taps.offset(input, output + 1, 0, 0) - taps.offset(input, output, 0, 0);
    Doubles half[F::kPatch][kTaps];
    for (int64_t x = 0; x < kTaps; ++x) {
      Doubles column[kTaps], found[F::kPatch];
      for (int64_t y = 0; y < kTaps; ++y) {
        double entries[kDoubles] = {};
        const T* source = kernel + taps.offset(input, output, y, x);
        for (int64_t lane = 0; lane < used; ++lane) entries[lane] = source[lane * next];
        column[y] = load_lanes(entries);
      }
      F::of_taps(column, found);
      for (int64_t i = 0; i < F::kPatch; ++i) half[i][x] = found[i];
    }
    for (int64_t i = 0; i < F::kPatch; ++i) {
      Doubles found[F::kPatch];
      F::of_taps(half[i], found);
      for (int64_t j = 0; j < F::kPatch; ++j) {
        double entries[kDoubles];
        store_lanes(entries, found[j]);
        T* target = result.at(i * F::kPatch + j, output / kWide<T>, input) + output % kWide<T>;
        for (int64_t lane = 0; lane < kDoubles; ++lane) target[lane] = static_cast<T>(entries[lane]);
      }
    }
  });
}

// Gᵀ (Σ over `copies` of the matrices, which are `step` apart) G, for every pair of channels.
template <class F, class T>
inline void to_kernel(const Matrices<F, T>& sums, int64_t copies, int64_t step, const Taps& taps, T* kernel) {
  for_outputs<F, T>(taps, taps.outputs, copies, [&](int64_t input, int64_t output) {
    const int64_t used = std::min(taps.outputs - output, kDoubles);
    const int64_t next = taps.offset(input, output + 1, 0, 0) - taps.offset(input, output, 0, 0);
    const auto total = [&](int64_t product) {
      const T* entries = sums.at(product, output / kWide<T>, input) + output % kWide<T>;
      double sum[kDoubles] = {};
      for (int64_t copy = 0; copy < copies; ++copy, entries += step) {
        for (int64_t lane = 0; lane < kDoubles; ++lane) sum[lane] += entries[lane];
      }
      return load_lanes(sum);
    };
    Doubles half[kTaps][F::kPatch];
    for (int64_t j = 0; j < F::kPatch; ++j) {
      Doubles column[F::kPatch], found[kTaps];
      for (int64_t i = 0; i < F::kPatch; ++i) column[i] = total(i * F::kPatch + j);
      F::to_taps(column, found);
      for (int64_t y = 0; y < kTaps; ++y) half[y][j] = found[y];
    }
    for (int64_t y = 0; y < kTaps; ++y) {
      Doubles found[kTaps];
      F::to_taps(half[y], found);
      for (int64_t x = 0; x < kTaps; ++x) {
        double entries[kDoubles];
        store_lanes(entries, found[x]);
        T* target = kernel + taps.offset(input, output, y, x);
        for (int64_t lane = 0; lane < used; ++lane) target[lane * next] = static_cast<T>(entries[lane]);
      }
    }
  });
}

}  // namespace fastlip::winograd

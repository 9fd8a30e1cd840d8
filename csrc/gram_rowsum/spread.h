// Whether the sums and differences of a 3 x 3 kernel's taps lose little to rounding: see points.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "gram_rowsum/geometry.h"

namespace fastlip::gram_rowsum {

struct Points;  // names the scratch memory that both passes share

// The energy Σ_{o,τ} W[o,i,τ]² of each input channel, and whether each tap has its share of it.
template <class T>
class Spread {
 public:
  // Differences of products then have at most some dozens of times the rounding error of direct sums.
  static constexpr double kShare = 1.0 / 4096;

  Spread(const T* weight, const Geometry& geometry, const Strides& stride)
      : energy_(geometry.groups * geometry.channels), even_(geometry.groups * geometry.tiles) {
    parallel_jobs(geometry.groups * geometry.tiles, geometry.is_large(), [&](int64_t job) {
      const int64_t group = job / geometry.tiles, tile = job % geometry.tiles, width = geometry.width(tile);
      const T* source = weight + group * geometry.outputs * stride.output + tile * kTile * stride.channel;
      T taps[kTile * kTaps] = {};
      add_squares(source, geometry.outputs, width, stride, taps);
      even_[job] = is_even(taps, width, energy_.data() + group * geometry.channels + tile * kTile);
    });
  }

  bool even() const { return std::all_of(even_.begin(), even_.end(), [](char even) { return even != 0; }); }
  const T* energy() const { return energy_.data(); }

 private:
  static constexpr int64_t kTaps = 9;
  static constexpr int64_t kPeriod = 16 * kTaps;  // whole vectors that begin with the first tap

  // sums[channel][tap] += Σ_o W².
  static void add_squares(const T* source, int64_t outputs, int64_t width, const Strides& stride, T* sums) {
    const bool taps = std::equal(stride.tap.begin(), stride.tap.end(), kNeighbours);
    if (taps && stride.channel == kTaps) {
      for (int64_t o = 0; o < outputs; ++o, source += stride.output) {
        for (int64_t n = 0; n < width * kTaps; ++n) sums[n] += source[n] * source[n];
      }
    } else if (taps && stride.output == kTaps) {
      for (int64_t i = 0; i < width; ++i) add_run(source + i * stride.channel, outputs * kTaps, sums + i * kTaps);
    } else {
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t i = 0; i < width; ++i) {
          for (int64_t tap = 0; tap < kTaps; ++tap) {
            const T value = source[o * stride.output + i * stride.channel + stride.tap[tap]];
            sums[i * kTaps + tap] += value * value;
          }
        }
      }
    }
  }

  // The same for one channel whose outputs and taps are neighbours.
  static void add_run(const T* source, int64_t length, T* sums) {
    T partial[kPeriod] = {};
    int64_t begin = 0;
    for (; begin + kPeriod <= length; begin += kPeriod) {
      for (int64_t n = 0; n < kPeriod; ++n) partial[n] += source[begin + n] * source[begin + n];
    }
    for (int64_t n = 0; begin + n < length; ++n) partial[n] += source[begin + n] * source[begin + n];
    for (int64_t n = 0; n < kPeriod; ++n) sums[n % kTaps] += partial[n];
  }

  // False for NaN, and for energies whose products could overflow or vanish.
  static bool is_even(const T* taps, int64_t width, T* energy) {
    constexpr T large = std::numeric_limits<T>::max() / 4096, small = std::numeric_limits<T>::min() * 4096;
    bool even = true;
    for (int64_t i = 0; i < width; ++i, taps += kTaps) {
      T sum{0}, least = taps[0];
      for (int64_t tap = 0; tap < kTaps; ++tap) sum += taps[tap], least = std::min(least, taps[tap]);
      energy[i] = sum;
      even = even && sum < large && least > small && least >= static_cast<T>(kShare) * sum;
    }
    return even;
  }

  static constexpr int64_t kNeighbours[kTaps] = {0, 1, 2, 3, 4, 5, 6, 7, 8};

  std::vector<T> energy_;
  std::vector<char> even_;
};

}  // namespace fastlip::gram_rowsum

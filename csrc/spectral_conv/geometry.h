// The unique frequencies of real images, and how channels and frequencies lie in a spectrum.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"

namespace fastlip::spectral_conv {

// One side of the FFT size: frequency 0 and, where the side is even, its half are their own conjugates.
struct Side {
  int64_t length;
  int64_t ends = 2 - length % 2;
  int64_t halves = (length + 1) / 2 - 1;  // frequencies strictly between 0 and length / 2
};

// Numbers of the unique frequencies as fastlip.ops.spectral_conv.unique_frequencies lists them.
struct Frequencies {
  Side y, x;
  int64_t own = y.ends * x.ends;             // self-conjugate: the spectrum is real there
  int64_t before_columns = own + y.halves * x.ends;
  int64_t count = before_columns + y.length * x.halves;

  int64_t at_ends(int64_t end_y, int64_t end_x) const { return end_y * x.ends + end_x; }
  int64_t at_end_x(int64_t ky, int64_t end_x) const { return own + (ky - 1) * x.ends + end_x; }
  int64_t at_column(int64_t ky, int64_t kx) const { return before_columns + ky * x.halves + kx - 1; }
};

// Channels in chunks of one vector; each group begins a chunk, and the lanes that it leaves over are zero.
template <class T>
struct Channels {
  static constexpr int64_t lanes = kLaneCount<T>;
  int64_t groups;
  int64_t per_group;
  int64_t chunks_per_group = (per_group + lanes - 1) / lanes;
  int64_t count = groups * per_group;
  int64_t chunks = groups * chunks_per_group;

  int64_t first(int64_t chunk) const {
    return chunk / chunks_per_group * per_group + chunk % chunks_per_group * lanes;
  }
  int64_t width(int64_t chunk) const { return width_in_group(chunk % chunks_per_group); }
  int64_t width_in_group(int64_t chunk) const { return std::min(lanes, per_group - chunk * lanes); }
};

// The spectrum of some images: [frequency][image][chunk][real, imaginary part][lane], without imaginary parts where
// frequencies are their own conjugates.
template <class T>
struct Spectrum {
  static constexpr int64_t lanes = kLaneCount<T>;
  static constexpr int64_t kLine = 64 / sizeof(T);
  static constexpr int64_t kCacheBytes = 4 << 20;
  T* data;
  Frequencies frequencies;
  int64_t images;
  int64_t chunks;
  // A line is left out after each frequency: distances that are powers of two would share few sets of a cache.
  int64_t own_size = images * chunks * lanes + kLine;
  int64_t size = images * chunks * 2 * lanes + kLine;
  bool exceeds_cache = frequencies.count * size * static_cast<int64_t>(sizeof(T)) > kCacheBytes;

  static int64_t elements(const Frequencies& frequencies, int64_t images, int64_t chunks) {
    return frequencies.count * (images * chunks * 2 * lanes + kLine);
  }
  bool is_real(int64_t frequency) const { return frequency < frequencies.own; }
  // From one image to the next.
  int64_t row(int64_t frequency) const { return chunks * (is_real(frequency) ? lanes : 2 * lanes); }
  T* at(int64_t frequency) const {
    const int64_t own = frequencies.own;
    return data + (frequency < own ? frequency * own_size : own * own_size + (frequency - own) * size);
  }
  T* at(int64_t frequency, int64_t image, int64_t chunk) const {
    return at(frequency) + (image * chunks + chunk) * (is_real(frequency) ? lanes : 2 * lanes);
  }
};

}  // namespace fastlip::spectral_conv

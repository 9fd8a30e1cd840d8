// Two-dimensional transforms between images and their unique frequencies, a chunk of channels of one image at a time.
//
// Two rows of a real image are one complex signal, and so are the two columns whose transforms along the rows are real
// (k_x = 0 and half the width): what belongs to which is told apart afterwards by conjugate symmetry.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/pages.h"
#include "common/scratch.h"
#include "spectral_conv/fft.h"
#include "spectral_conv/geometry.h"
#include "spectral_conv/image.h"

namespace fastlip::spectral_conv {

template <class T>
class Transform {
 public:
  Transform(int64_t height, int64_t width, int64_t fft_height, int64_t fft_width)
      : frequencies{{fft_height}, {fft_width}}, height_(height), width_(width), along_y_(fft_height),
        along_x_(fft_width), band_rows_(2 * pairs_per_band<T>(width)),
        column_size_((2 * fft_height + 1) * lanes) {}

  const Frequencies frequencies;

  int64_t area() const { return frequencies.y.length * frequencies.x.length; }

  // DFT of one chunk of `channels` channels into the spectrum. prepare(band, first row, rows) may change the pixels
  // before.
  template <class Prepare>
  void forward(const Images<const T>& images, const T* image, int64_t channels, const Spectrum<T>& spectrum, int64_t slot,
               int64_t chunk, const Prepare& prepare) const {
    const Workspace work = workspace();
    clear_rows_beyond_image(work);
    for (int64_t y = 0; y < height_; y += band_rows_) {
      const int64_t rows = std::min(band_rows_, height_ - y);
      load_band(images, image, channels, y, rows, work.band);
      prepare(work.band, y, rows);
      for (int64_t row = 0; row < rows; row += 2) {
        const T* z = along_x_(work.band.pair(row / 2), work.first, work.second);
        split_rows(z, work, y + row, row + 1 < rows);
      }
    }
    split_ends(along_y_(work.columns, work.first, work.second), spectrum, slot, chunk);
    for (int64_t kx = 1; kx <= frequencies.x.halves; ++kx) {
      if (!spectrum.exceeds_cache) prefetch_column(spectrum, slot, chunk, kx);
      const T* z = along_y_(work.columns + kx * column_size_, work.first, work.second);
      if (spectrum.exceeds_cache) {
        put_column<true>(z, spectrum, slot, chunk, kx);
      } else {
        put_column<false>(z, spectrum, slot, chunk, kx);
      }
    }
    finish_streaming();
  }

  // scale · (area · IDFT) + bias of one chunk of the spectrum; bias may be null. finish(band, first row, rows) may change
  // the pixels before they are stored.
  template <class Finish>
  void inverse(const Spectrum<T>& spectrum, int64_t slot, int64_t chunk, T scale, const T* bias, int64_t channels,
               const Images<T>& images, T* image, const Finish& finish) const {
    const Workspace work = workspace();
    join_ends(spectrum, slot, chunk, work.band.data);
    keep_column(along_y_(work.band.data, work.first, work.second), work.columns);
    for (int64_t kx = 1; kx <= frequencies.x.halves; ++kx) {
      for (int64_t ky = 0; ky < frequencies.y.length; ++ky) {
        const ComplexLanes<T> value = load_complex(spectrum.at(frequencies.at_column(ky, kx), slot, chunk));
        store_complex<T>(work.band.data + ky * 2 * lanes, value.im, value.re);
      }
      if (kx < frequencies.x.halves) prefetch_column(spectrum, slot, chunk, kx + 1);
      keep_column(along_y_(work.band.data, work.first, work.second), work.columns + kx * column_size_);
    }
    const Lanes<T> shift = bias == nullptr ? Lanes<T>{} : load_first(bias, channels);
    for (int64_t y = 0; y < height_; y += band_rows_) {
      const int64_t rows = std::min(band_rows_, height_ - y);
      for (int64_t row = 0; row < rows; row += 2) {
        T* pair = work.band.pair(row / 2);
        join_rows(work, y + row, row + 1 < rows, pair);
        const T* z = along_x_(pair, work.first, work.second);
        for (int64_t x = 0; x < width_; ++x) {
          const ComplexLanes<T> value = load_complex(z + x * 2 * lanes);
          store_complex<T>(pair + x * 2 * lanes, value.im * scale + shift, value.re * scale + shift);
        }
      }
      finish(work.band, y, rows);
      store_band(work.band, channels, y, rows, images, image);
    }
  }

  // Scratch memory for a band beside the one that is being transformed.
  Band<T> second_band() const {
    const int64_t size = band_rows_ * frequencies.x.length * lanes;
    return {scratch<T, struct SecondBand>(size), frequencies.x.length};
  }

 private:
  static constexpr int64_t lanes = kLaneCount<T>;

  // columns: [kx][y] complex, the first being the two real columns k_x = 0 and half the width.
  struct Workspace {
    Band<T> band;
    T* first;
    T* second;
    T* columns;
  };

  Workspace workspace() const {
    const int64_t longest = std::max(frequencies.x.length, frequencies.y.length) * 2 * lanes;
    const int64_t band = std::max(longest, band_rows_ * frequencies.x.length * lanes);
    const int64_t columns = (frequencies.x.halves + 1) * column_size_;
    T* memory = scratch<T, struct TransformWorkspace>(band + 2 * longest + columns);
    return {{memory, frequencies.x.length}, memory + band, memory + band + longest, memory + band + 2 * longest};
  }

  template <bool streams>
  void put_column(const T* z, const Spectrum<T>& spectrum, int64_t slot, int64_t chunk, int64_t kx) const {
    for (int64_t ky = 0; ky < frequencies.y.length; ++ky) {
      const ComplexLanes<T> value = load_complex(z + ky * 2 * lanes);
      T* target = spectrum.at(frequencies.at_column(ky, kx), slot, chunk);
      if constexpr (streams) {
        stream_lanes<T>(target, value.re);
        stream_lanes<T>(target + lanes, value.im);
      } else {
        store_complex<T>(target, value.re, value.im);
      }
    }
  }

  // One line of each frequency, far apart: no hardware foresees them.
  void prefetch_column(const Spectrum<T>& spectrum, int64_t slot, int64_t chunk, int64_t kx) const {
    for (int64_t ky = 0; ky < frequencies.y.length; ++ky) {
      const T* line = spectrum.at(frequencies.at_column(ky, kx), slot, chunk);
      __builtin_prefetch(line, 1);
      __builtin_prefetch(line + lanes, 1);
    }
  }

  void clear_rows_beyond_image(const Workspace& work) const {
    for (int64_t kx = 0; kx <= frequencies.x.halves; ++kx) {
      T* column = work.columns + kx * column_size_;
      std::fill(column + height_ * 2 * lanes, column + frequencies.y.length * 2 * lanes, T{0});
    }
  }

  // The transforms of the rows y and y + 1, from that of row y + i · row (y + 1).
  void split_rows(const T* z, const Workspace& work, int64_t y, bool both) const {
    const int64_t length = frequencies.x.length;
    T* column = work.columns + y * 2 * lanes;
    const ComplexLanes<T> zero = load_complex(z);
    const ComplexLanes<T> half = frequencies.x.ends == 2 ? load_complex(z + length * lanes) : ComplexLanes<T>{};
    store_complex<T>(column, zero.re, half.re);
    if (both) store_complex<T>(column + 2 * lanes, zero.im, half.im);
    constexpr T factor = 0.5;
    for (int64_t kx = 1; kx <= frequencies.x.halves; ++kx) {
      column += column_size_;
      const ComplexLanes<T> a = load_complex(z + kx * 2 * lanes), b = load_complex(z + (length - kx) * 2 * lanes);
      store_complex<T>(column, (a.re + b.re) * factor, (a.im - b.im) * factor);
      if (both) store_complex<T>(column + 2 * lanes, (a.im + b.im) * factor, (b.re - a.re) * factor);
    }
  }

  // The inverse of split_rows, with real and imaginary parts exchanged.
  void join_rows(const Workspace& work, int64_t y, bool both, T* z) const {
    const int64_t length = frequencies.x.length;
    const T* column = work.columns + y * 2 * lanes;
    const ComplexLanes<T> none = {};
    const ComplexLanes<T> first = load_complex(column), second = both ? load_complex(column + 2 * lanes) : none;
    store_complex<T>(z, second.re, first.re);
    if (frequencies.x.ends == 2) store_complex<T>(z + length * lanes, second.im, first.im);
    for (int64_t kx = 1; kx <= frequencies.x.halves; ++kx) {
      column += column_size_;
      const ComplexLanes<T> a = load_complex(column), b = both ? load_complex(column + 2 * lanes) : none;
      store_complex<T>(z + kx * 2 * lanes, a.im + b.re, a.re - b.im);
      store_complex<T>(z + (length - kx) * 2 * lanes, b.re - a.im, a.re + b.im);
    }
  }

  // The transforms of the columns k_x = 0 and half the width, from that of their complex combination.
  void split_ends(const T* z, const Spectrum<T>& spectrum, int64_t slot, int64_t chunk) const {
    const int64_t length = frequencies.y.length, ends = frequencies.x.ends;
    for (int64_t end = 0; end < frequencies.y.ends; ++end) {
      const ComplexLanes<T> value = load_complex(z + end * length * lanes);
      store_lanes<T>(spectrum.at(frequencies.at_ends(end, 0), slot, chunk), value.re);
      if (ends == 2) store_lanes<T>(spectrum.at(frequencies.at_ends(end, 1), slot, chunk), value.im);
    }
    constexpr T factor = 0.5;
    for (int64_t ky = 1; ky <= frequencies.y.halves; ++ky) {
      const ComplexLanes<T> a = load_complex(z + ky * 2 * lanes), b = load_complex(z + (length - ky) * 2 * lanes);
      T* target = spectrum.at(frequencies.at_end_x(ky, 0), slot, chunk);
      store_complex<T>(target, (a.re + b.re) * factor, (a.im - b.im) * factor);
      if (ends == 1) continue;
      target = spectrum.at(frequencies.at_end_x(ky, 1), slot, chunk);
      store_complex<T>(target, (a.im + b.im) * factor, (b.re - a.re) * factor);
    }
  }

  // The inverse of split_ends, with real and imaginary parts exchanged.
  void join_ends(const Spectrum<T>& spectrum, int64_t slot, int64_t chunk, T* z) const {
    const int64_t length = frequencies.y.length;
    const bool both = frequencies.x.ends == 2;
    for (int64_t end = 0; end < frequencies.y.ends; ++end) {
      const Lanes<T> first = load_lanes(spectrum.at(frequencies.at_ends(end, 0), slot, chunk));
      const Lanes<T> second =
          both ? load_lanes(spectrum.at(frequencies.at_ends(end, 1), slot, chunk)) : Lanes<T>{};
      store_complex<T>(z + end * length * lanes, second, first);
    }
    for (int64_t ky = 1; ky <= frequencies.y.halves; ++ky) {
      const ComplexLanes<T> a = load_complex(spectrum.at(frequencies.at_end_x(ky, 0), slot, chunk));
      ComplexLanes<T> b = {};
      if (both) b = load_complex(spectrum.at(frequencies.at_end_x(ky, 1), slot, chunk));
      store_complex<T>(z + ky * 2 * lanes, a.im + b.re, a.re - b.im);
      store_complex<T>(z + (length - ky) * 2 * lanes, b.re - a.im, a.re + b.im);
    }
  }

  // The image's rows of an inverse transform along y, whose parts are still exchanged.
  void keep_column(const T* z, T* column) const {
    for (int64_t y = 0; y < height_; ++y) {
      const ComplexLanes<T> value = load_complex(z + y * 2 * lanes);
      store_complex<T>(column + y * 2 * lanes, value.im, value.re);
    }
  }

  int64_t height_, width_;
  Fourier<T> along_y_, along_x_;
  int64_t band_rows_;
  int64_t column_size_;
};

}  // namespace fastlip::spectral_conv

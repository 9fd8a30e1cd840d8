// Matrix products at one frequency, with vectors across output columns: Y = X Qᵀ, X̄ = Ȳ conj(Q), Q̄ = Ȳᵀ conj(X), where
// rows of X and Y are images and columns are channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/scratch.h"
#include "common/transpose.h"
#include "spectral_conv/geometry.h"
#include "spectral_conv/tile.h"

namespace fastlip::spectral_conv {

// The matrices Q (F, outputs, inputs per group), complex; or, where they are fixed, their panels: what pack makes of each
// frequency, one after the other.
template <class T>
class Mixing {
 public:
  static constexpr int64_t lanes = kLaneCount<T>;

  Mixing(const T* matrices, const T* fixed_panels, Channels<T> inputs, Channels<T> outputs)
      : matrices_(matrices), fixed_panels_(fixed_panels), inputs_(inputs), outputs_(outputs) {}

  // Images [begin, end) of the spectrum at a frequency: x to Q x, or with `adjoint` y to Qᴴ y, in place. Where `sums` is
  // not null, it gets what was there plus the result, at the same places; it may be the spectrum's own memory. Meanwhile
  // the same images at the frequency `next` come nearer (none if it is negative).
  void apply(const Spectrum<T>& spectrum, int64_t frequency, int64_t next, int64_t begin, int64_t end, bool adjoint,
             T* sums) const {
    const bool is_real = spectrum.is_real(frequency);
    const T* panels = adjoint                    ? pack_adjoint(frequency, is_real)
                      : fixed_panels_ == nullptr ? pack(frequency, is_real)
                                                 : fixed_panels(frequency, spectrum.frequencies.own);
    const Channels<T>& from = adjoint ? outputs_ : inputs_;
    const Channels<T>& to = adjoint ? inputs_ : outputs_;
    // Rows a vector apart from powers of two do not compete for the same lines of the cache.
    const int64_t row = spectrum.row(frequency), padded = row + lanes;
    const int64_t step = std::max<int64_t>(kRows<T>, kBlockElements / row / kRows<T> * kRows<T>);
    T* block = scratch<T, struct MixingBlock>(step * padded);
    for (int64_t image = begin; image < end; image += step) {
      const int64_t count = std::min(step, end - image);
      T* target = spectrum.at(frequency, image, 0);
      for (int64_t i = 0; i < count; ++i) std::copy_n(target + i * row, row, block + i * padded);
      Approach<T> approach;
      if (next >= 0) {
        const int64_t tiles = to.chunks * ((count + kRows<T> - 1) / kRows<T>);
        approach = {spectrum.at(next, image, 0), count * spectrum.row(next), tiles};
      }
      if (is_real) {
        multiply<false>({block, padded, count}, panels, target, row, from, to, approach);
      } else {
        multiply<true>({block, padded, count}, panels, target, row, from, to, approach);
      }
      if (sums != nullptr) add({block, padded, count}, target, row, sums + (target - spectrum.data));
    }
  }

  // The gradient of Q at a frequency for chunks [begin, end) of its input channels: scale Σ Ȳ Xᴴ over all images.
  void gradient(const Spectrum<T>& x, const Spectrum<T>& y, int64_t frequency, int64_t begin, int64_t end, T scale,
                bool add, T* target) const {
    if (x.is_real(frequency)) {
      gradient_of<false>(x, y, frequency, begin, end, scale, add, target);
    } else {
      gradient_of<true>(x, y, frequency, begin, end, scale, add, target);
    }
  }

 private:
  static constexpr int64_t kBlockElements = 64 * 1024;
  static constexpr int64_t kChunksAtATime = 4;
  static constexpr int64_t kAhead = 8;  // images that are far apart are asked for early

  const T* matrix(int64_t frequency, int64_t row) const {
    return matrices_ + (frequency * outputs_.count + row) * inputs_.per_group * 2;
  }

  // Real frequencies have half as much.
  const T* fixed_panels(int64_t frequency, int64_t own) const {
    const int64_t half = outputs_.chunks * inputs_.per_group * lanes;
    return fixed_panels_ + (frequency < own ? frequency : 2 * frequency - own) * half;
  }

  T* panels(int64_t rows, const Channels<T>& columns) const {
    return scratch<T, struct MixingPanels>(columns.chunks * rows * 2 * lanes);
  }

  // Qᵀ as [chunk of outputs][input of the group][real, imaginary part][lane].
  const T* pack(int64_t frequency, bool is_real) const {
    const int64_t size = inputs_.per_group, step = is_real ? lanes : 2 * lanes;
    T* const result = panels(size, outputs_);
    T* target = result;
    for (int64_t chunk = 0; chunk < outputs_.chunks; ++chunk) {
      const int64_t rows = outputs_.width(chunk);
      for (int64_t i = 0; i < size; i += lanes) {
        const int64_t count = std::min(lanes, size - i);
        Lanes<T> re[lanes] = {}, im[lanes] = {};
        for (int64_t r = 0; r < rows; ++r) {
          const T* source = matrix(frequency, outputs_.first(chunk) + r) + 2 * i;
          __builtin_prefetch(source + 8 * lanes);
          __builtin_prefetch(source + 9 * lanes);
          const ComplexLanes<T> value = load_interleaved(source, count);
          re[r] = value.re;
          im[r] = value.im;
        }
        transpose<T>(re);
        if (!is_real) transpose<T>(im);
        for (int64_t e = 0; e < count; ++e, target += step) {
          store_lanes<T>(target, re[e]);
          if (!is_real) store_lanes<T>(target + lanes, im[e]);
        }
      }
    }
    return result;
  }

  // conj(Q) as [chunk of inputs][output of the group][real, imaginary part][lane].
  const T* pack_adjoint(int64_t frequency, bool is_real) const {
    const int64_t size = outputs_.per_group, step = is_real ? lanes : 2 * lanes;
    T* const result = panels(size, inputs_);
    // Some chunks at a time: they are neighbours in a row of Q, whose rows may be pages apart.
    for (int64_t group = 0; group < inputs_.groups; ++group) {
      for (int64_t begin = 0; begin < inputs_.chunks_per_group; begin += kChunksAtATime) {
        const int64_t end = std::min(begin + kChunksAtATime, inputs_.chunks_per_group);
        for (int64_t o = 0; o < size; ++o) {
          const T* source = matrix(frequency, group * size + o) + 2 * lanes * begin;
          __builtin_prefetch(source + kAhead * inputs_.per_group * 2);
          for (int64_t within = begin; within < end; ++within, source += 2 * lanes) {
            const ComplexLanes<T> value = load_interleaved(source, inputs_.width_in_group(within));
            T* target = result + ((group * inputs_.chunks_per_group + within) * size + o) * step;
            store_lanes<T>(target, value.re);
            if (!is_real) store_lanes<T>(target + lanes, -value.im);
          }
        }
      }
    }
    return result;
  }

  struct Block {
    const T* data;
    int64_t row;
    int64_t images;
  };

  // sums = block + results
  static void add(const Block& block, const T* results, int64_t row, T* sums) {
    for (int64_t i = 0; i < block.images; ++i, sums += row, results += row) {
      const T* before = block.data + i * block.row;
      for (int64_t j = 0; j < row; j += lanes) store_lanes<T>(sums + j, load_lanes(results + j) + load_lanes(before + j));
    }
  }

  template <bool is_complex>
  static void multiply(const Block& block, const T* panels, T* target, int64_t row, const Channels<T>& from,
                       const Channels<T>& to, Approach<T>& approach) {
    constexpr int64_t step = is_complex ? 2 * lanes : lanes;
    for (int64_t chunk = 0; chunk < to.chunks; ++chunk) {
      const T* panel = panels + chunk * from.per_group * step;
      const T* source = block.data + chunk / to.chunks_per_group * from.chunks_per_group * step;
      int64_t image = 0;
      const auto run = [&]<int rows>(std::integral_constant<int, rows>) {
        for (; image + rows <= block.images; image += rows) {
          approach.advance();
          tile_product<rows, is_complex>(source + image * block.row, block.row, panel, from.per_group,
                                         target + image * row + chunk * step, row);
        }
      };
      run(std::integral_constant<int, kRows<T>>{});
      if constexpr (kRows<T> > 4) run(std::integral_constant<int, 4>{});
      if constexpr (kRows<T> > 2) run(std::integral_constant<int, 2>{});
      run(std::integral_constant<int, 1>{});
    }
  }

  template <int rows, bool is_complex>
  static void tile_product(const T* a, int64_t a_row, const T* b, int64_t length, T* target, int64_t row) {
    constexpr int64_t step = is_complex ? 2 * lanes : lanes;
    Tile<T, rows, is_complex> tile;
    for (int64_t begin = 0; begin < length; begin += lanes, a += step, b += lanes * step) {
      tile.add_all(a, 1, a_row, lanes, b, std::min(lanes, length - begin));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const ComplexLanes<T> value = tile.row(r);
      store_lanes<T>(target + r * row, value.re);
      if constexpr (is_complex) store_lanes<T>(target + r * row + lanes, value.im);
    }
  }

  template <bool is_complex>
  void gradient_of(const Spectrum<T>& x, const Spectrum<T>& y, int64_t frequency, int64_t begin, int64_t end, T scale,
                   bool add, T* target) const {
    constexpr int64_t step = is_complex ? 2 * lanes : lanes;
    T* panel = scratch<T, struct MixingBlock>(x.images * step);
    int64_t packed = -1;
    const T* rows = nullptr;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t group = chunk / inputs_.chunks_per_group;
      if (group != packed) rows = pack_rows<is_complex>(y, frequency, group);
      packed = group;
      const T* source = x.at(frequency, 0, chunk);
      const int64_t row = x.row(frequency);
      for (int64_t image = 0; image < x.images; ++image, source += row) {
        __builtin_prefetch(source + kAhead * row);
        store_lanes<T>(panel + image * step, load_lanes(source) * scale);
        if constexpr (is_complex) store_lanes<T>(panel + image * step + lanes, load_lanes(source + lanes) * -scale);
      }
      gradient_rows<is_complex>(rows, x.images, frequency, chunk, panel, add, target);
    }
  }

  // Ȳ of a group as [kRows channels][image][real, imaginary part][channel].
  template <bool is_complex>
  const T* pack_rows(const Spectrum<T>& y, int64_t frequency, int64_t group) const {
    constexpr int64_t parts = is_complex ? 2 : 1;
    const int64_t chunks = outputs_.chunks_per_group, row = y.row(frequency);
    const int64_t size = y.images * parts * kRows<T>;
    T* result = scratch<T, struct MixingPanels>(chunks * lanes / kRows<T> * size);
    for (int64_t o = 0; o < chunks * lanes; o += lanes) {
      const T* source = y.at(frequency, 0, group * chunks + o / lanes);
      T* target = result + o / kRows<T> * size;
      for (int64_t image = 0; image < y.images; ++image, source += row, target += parts * kRows<T>) {
        __builtin_prefetch(source + kAhead * row);
#pragma GCC unroll 8
        for (int64_t part = 0; part < lanes; part += kRows<T>) {
          T* place = target + part / kRows<T> * size;
          std::copy_n(source + part, kRows<T>, place);
          if constexpr (is_complex) std::copy_n(source + lanes + part, kRows<T>, place + kRows<T>);
        }
      }
    }
    return result;
  }

  template <bool is_complex>
  void gradient_rows(const T* rows, int64_t images, int64_t frequency, int64_t chunk, const T* panel, bool add,
                     T* target) const {
    constexpr int64_t a_step = (is_complex ? 2 : 1) * kRows<T>;
    const int64_t group = chunk / inputs_.chunks_per_group, within = chunk % inputs_.chunks_per_group;
    const int64_t count = inputs_.width_in_group(within), size = inputs_.per_group;
    for (int64_t o = 0; o < outputs_.per_group; o += kRows<T>) {
      const T* a = rows + o * images * (is_complex ? 2 : 1);
      Tile<T, kRows<T>, is_complex> tile;
      tile.add_all(a, a_step, 1, kRows<T>, panel, images);
      const int64_t limit = outputs_.per_group - o, q = frequency * outputs_.count + group * outputs_.per_group + o;
      T* place = target + (q * size + within * lanes) * 2;
#pragma GCC unroll 8
      for (int r = 0; r < kRows<T>; ++r) {
        if (r >= limit) break;
        add_interleaved<T>(place + r * size * 2, tile.row(r), count, add);
      }
    }
  }

  const T* matrices_;
  const T* fixed_panels_;
  Channels<T> inputs_, outputs_;
};

}  // namespace fastlip::spectral_conv

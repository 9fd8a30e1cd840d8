// Matrix products at one frequency, with vectors across output columns: Y = X Qᵀ, X̄ = Ȳ conj(Q), Q̄ = Ȳᵀ conj(X), where
// rows of X and Y are images and columns are channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/gemm.h"
#include "common/scratch.h"
#include "common/transpose.h"
#include "spectral_conv/fft.h"
#include "spectral_conv/geometry.h"

namespace fastlip::spectral_conv {

template <class T>
constexpr int kRows = kPanelRows < kLaneCount<T> ? kPanelRows : kLaneCount<T>;

// `rows` rows of one vector of columns.
template <class T, int rows, bool is_complex>
struct Tile {
  Lanes<T> re[rows] = {};
  Lanes<T> im[is_complex ? rows : 1] = {};

  // += a bᵀ for one column a, whose entries are `stride` apart and their imaginary parts a vector further on.
  [[gnu::always_inline]] void add(const T* a, int64_t stride, const T* b) {
    constexpr int64_t lanes = kLaneCount<T>;
    const Lanes<T> b_re = load_lanes(b), b_im = is_complex ? load_lanes(b + lanes) : b_re;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const T a_re = a[r * stride];
      re[r] += b_re * a_re;
      if constexpr (is_complex) {
        const T a_im = a[r * stride + lanes];
        im[r] += b_im * a_re;
        re[r] -= b_im * a_im;
        im[r] += b_re * a_im;
      }
    }
  }
};

// Interleaved complex numbers, the first `count` of a vector's lanes, to real and imaginary parts and back.
template <class T, int... lane>
inline ComplexLanes<T> separate(Lanes<T> low, Lanes<T> high, std::integer_sequence<int, lane...>) {
  return {__builtin_shufflevector(low, high, (2 * lane)...), __builtin_shufflevector(low, high, (2 * lane + 1)...)};
}

template <class T>
inline ComplexLanes<T> load_interleaved(const T* source, int64_t count) {
  constexpr int64_t lanes = kLaneCount<T>;
  const Lanes<T> low = load_first(source, std::min(2 * count, lanes));
  const Lanes<T> high = 2 * count > lanes ? load_first(source + lanes, 2 * count - lanes) : Lanes<T>{};
  return separate<T>(low, high, std::make_integer_sequence<int, lanes>{});
}

template <class T, int... lane>
inline void store_interleaved(T* target, ComplexLanes<T> value, int64_t count, std::integer_sequence<int, lane...>) {
  constexpr int lanes = kLaneCount<T>;
  const auto low = __builtin_shufflevector(value.re, value.im, (lane / 2 + lane % 2 * lanes)...);
  const auto high = __builtin_shufflevector(value.re, value.im, ((lanes + lane) / 2 + lane % 2 * lanes)...);
  store_first<T>(target, low, std::min<int64_t>(2 * count, lanes));
  if (2 * count > lanes) store_first<T>(target + lanes, high, 2 * count - lanes);
}

// The matrices Q (F, outputs, inputs per group), complex.
template <class T>
class Mixing {
 public:
  static constexpr int64_t lanes = kLaneCount<T>;

  Mixing(const T* matrices, Channels<T> inputs, Channels<T> outputs)
      : matrices_(matrices), inputs_(inputs), outputs_(outputs) {}

  // Images [begin, end) of the spectrum at a frequency: x to Q x, or with `adjoint` y to Qᴴ y, in place.
  void apply(const Spectrum<T>& spectrum, int64_t frequency, int64_t begin, int64_t end, bool adjoint) const {
    const bool is_real = spectrum.is_real(frequency);
    const T* panels = adjoint ? pack_adjoint(frequency, is_real) : pack(frequency, is_real);
    const Channels<T>& from = adjoint ? outputs_ : inputs_;
    const Channels<T>& to = adjoint ? inputs_ : outputs_;
    const int64_t row = spectrum.row(frequency);
    const int64_t step = std::max<int64_t>(kRows<T>, kBlockElements / row / kRows<T> * kRows<T>);
    T* block = scratch<T, struct MixingBlock>(step * row);
    for (int64_t image = begin; image < end; image += step) {
      const int64_t count = std::min(step, end - image);
      T* target = spectrum.at(frequency, image, 0);
      std::copy_n(target, count * row, block);
      if (is_real) {
        multiply<false>(block, panels, target, count, row, from, to);
      } else {
        multiply<true>(block, panels, target, count, row, from, to);
      }
    }
  }

  // The gradient of the rows of Q for one chunk of its input channels at a frequency: scale Σ Ȳ Xᴴ over all images.
  void gradient(const Spectrum<T>& x, const Spectrum<T>& y, int64_t frequency, int64_t chunk, T scale, bool add,
                T* target) const {
    const bool is_real = x.is_real(frequency);
    const int64_t vectors = is_real ? 1 : 2;
    T* panel = scratch<T, struct MixingPanels>(x.images * vectors * lanes);
    for (int64_t image = 0; image < x.images; ++image) {
      const T* source = x.at(frequency, image, chunk);
      T* packed = panel + image * vectors * lanes;
      store_lanes<T>(packed, load_lanes(source) * scale);
      if (!is_real) store_lanes<T>(packed + lanes, load_lanes(source + lanes) * -scale);
    }
    if (is_real) {
      gradient_rows<false>(y, frequency, chunk, panel, add, target);
    } else {
      gradient_rows<true>(y, frequency, chunk, panel, add, target);
    }
  }

 private:
  static constexpr int64_t kBlockElements = 64 * 1024;

  const T* matrix(int64_t frequency, int64_t row) const {
    return matrices_ + (frequency * outputs_.count + row) * inputs_.per_group * 2;
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
    T* target = result;
    for (int64_t chunk = 0; chunk < inputs_.chunks; ++chunk) {
      const int64_t group = chunk / inputs_.chunks_per_group, within = chunk % inputs_.chunks_per_group;
      for (int64_t o = 0; o < size; ++o, target += step) {
        const T* source = matrix(frequency, group * size + o) + 2 * within * lanes;
        const ComplexLanes<T> value = load_interleaved(source, inputs_.width_in_group(within));
        store_lanes<T>(target, value.re);
        if (!is_real) store_lanes<T>(target + lanes, -value.im);
      }
    }
    return result;
  }

  template <bool is_complex>
  static void multiply(const T* block, const T* panels, T* target, int64_t images, int64_t row, const Channels<T>& from,
                       const Channels<T>& to) {
    constexpr int64_t step = is_complex ? 2 * lanes : lanes;
    for (int64_t chunk = 0; chunk < to.chunks; ++chunk) {
      const T* panel = panels + chunk * from.per_group * step;
      const T* source = block + chunk / to.chunks_per_group * from.chunks_per_group * step;
      int64_t image = 0;
      const auto run = [&]<int rows>(std::integral_constant<int, rows>) {
        for (; image + rows <= images; image += rows) {
          tile_product<rows, is_complex>(source + image * row, row, panel, from.per_group,
                                         target + image * row + chunk * step);
        }
      };
      run(std::integral_constant<int, kRows<T>>{});
      if constexpr (kRows<T> > 4) run(std::integral_constant<int, 4>{});
      if constexpr (kRows<T> > 2) run(std::integral_constant<int, 2>{});
      run(std::integral_constant<int, 1>{});
    }
  }

  template <int rows, bool is_complex>
  static void tile_product(const T* a, int64_t row, const T* b, int64_t length, T* target) {
    constexpr int64_t step = is_complex ? 2 * lanes : lanes;
    Tile<T, rows, is_complex> tile;
    for (int64_t begin = 0; begin < length; begin += lanes, a += step) {
      const int64_t count = std::min(lanes, length - begin);
#pragma GCC unroll 4
      for (int64_t k = 0; k < count; ++k, b += step) tile.add(a + k, row, b);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      store_lanes<T>(target + r * row, tile.re[r]);
      if constexpr (is_complex) store_lanes<T>(target + r * row + lanes, tile.im[r]);
    }
  }

  template <bool is_complex>
  void gradient_rows(const Spectrum<T>& y, int64_t frequency, int64_t chunk, const T* panel, bool add,
                     T* target) const {
    constexpr int64_t step = is_complex ? 2 * lanes : lanes;
    const int64_t group = chunk / inputs_.chunks_per_group, within = chunk % inputs_.chunks_per_group;
    const int64_t count = inputs_.width_in_group(within), row = y.row(frequency);
    for (int64_t o = 0; o < outputs_.per_group; o += kRows<T>) {
      const T* a = y.at(frequency, 0, group * outputs_.chunks_per_group + o / lanes) + o % lanes;
      const T* b = panel;
      Tile<T, kRows<T>, is_complex> tile;
      for (int64_t image = 0; image < y.images; ++image, a += row, b += step) tile.add(a, 1, b);
      const int64_t rows = std::min<int64_t>(kRows<T>, outputs_.per_group - o);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t q = frequency * outputs_.count + group * outputs_.per_group + o + r;
        T* place = target + (q * inputs_.per_group + within * lanes) * 2;
        ComplexLanes<T> value{tile.re[r], is_complex ? tile.im[is_complex ? r : 0] : Lanes<T>{}};
        if (add) {
          const ComplexLanes<T> before = load_interleaved(place, count);
          value = {value.re + before.re, value.im + before.im};
        }
        store_interleaved(place, value, count, std::make_integer_sequence<int, lanes>{});
      }
    }
  }

  const T* matrices_;
  Channels<T> inputs_, outputs_;
};

}  // namespace fastlip::spectral_conv

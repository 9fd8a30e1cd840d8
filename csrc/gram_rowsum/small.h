// Weights so small that packing panels would take longer than their products: the sums as the formulas have them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gram_rowsum/geometry.h"

namespace fastlip::gram_rowsum {

// Groups of one tile. Each ordered pair of channels (i, j) is visited with the offsets that a diagonal tile keeps, zero
// and those behind it; the signs are laid out as the other kernels have them.
template <class T>
class Small {
 public:
  static bool fits(const Geometry& g) {
    return g.channels <= kTile && g.groups * g.outputs * g.channels * g.channels * g.taps * g.taps <= kProducts;
  }

  Small(const T* weight, const T* psi, const Geometry& geometry, const Strides& stride)
      : weight_(weight), psi_(psi), geometry_(geometry), stride_(stride), kept_((geometry.offsets + 1) / 2) {
    const auto [depth, height, width] = geometry.kernel;
    int64_t* number = number_;
    for (int64_t z = 0; z < depth; ++z) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) *number++ = (z * (2 * height - 1) + y) * (2 * width - 1) + x;
      }
    }
  }

  void forward(T* r, uint32_t* signs) const {
    const int64_t channels = geometry_.channels;
    std::fill_n(r, geometry_.groups * channels, T{0});
    std::fill_n(signs, geometry_.groups * kept_ * 2 * channels, 0);
    for_each_pair([&](int64_t group, int64_t i, int64_t j) {
      T v[kOffsets] = {}, sum{0};
      for_each_product([&](int64_t o, int64_t tap, int64_t other, int64_t offset) {
        v[offset] += weight_[at(stride_, group, o, i, tap)] * weight_[at(stride_, group, o, j, other)];
      });
      for (int64_t offset = 0; offset < kept_; ++offset) {
        uint32_t* word = signs + (group * kept_ + offset) * 2 * channels + i;
        word[0] |= static_cast<uint32_t>(v[offset] > 0) << j;
        word[channels] |= static_cast<uint32_t>(v[offset] < 0) << j;
        if (offset > 0) sum += std::abs(v[offset]);
      }
      // The offsets that are not kept: v[j,i,-δ] = v[i,j,δ].
      add_weighted(r + group * channels, group, i, j, std::abs(v[0]) + sum);
      add_weighted(r + group * channels, group, j, i, sum);
    });
  }

  void backward(const T* gradient, const uint32_t* signs, T* target, const Strides& stride) const {
    for_each_weight([&](int64_t group, int64_t o, int64_t i, int64_t tap) { target[at(stride, group, o, i, tap)] = 0; });
    for_each_pair([&](int64_t group, int64_t i, int64_t j) {
      const T* base = gradient + group * geometry_.channels;
      const T factor = base[i] * exponential(group, i, j) + base[j] * exponential(group, j, i);
      T signed_factor[kOffsets];
      for (int64_t offset = 0; offset < kept_; ++offset) {
        const uint32_t* word = signs + (group * kept_ + offset) * 2 * geometry_.channels + i;
        const bool positive = word[0] >> j & 1, negative = word[geometry_.channels] >> j & 1;
        signed_factor[offset] = positive ? factor : (negative ? -factor : T{0});
      }
      for_each_product([&](int64_t o, int64_t tap, int64_t other, int64_t offset) {
        const T value = signed_factor[offset];
        target[at(stride, group, o, i, tap)] += weight_[at(stride_, group, o, j, other)] * value;
        if (offset > 0) target[at(stride, group, o, j, other)] += weight_[at(stride_, group, o, i, tap)] * value;
      });
    });
  }

  // As in Backward, from the gradient for the weight.
  void psi_gradient(const T* gradient, const T* r, const T* weight_gradient, const Strides& stride, T* target) const {
    double sums[kProducts];
    const int64_t channels = geometry_.channels, all = geometry_.groups * channels;
    for (int64_t k = 0; k < all; ++k) sums[k] = -2.0 * gradient[k] * r[k];
    for_each_weight([&](int64_t group, int64_t o, int64_t i, int64_t tap) {
      const double value = weight_[at(stride_, group, o, i, tap)];
      sums[group * channels + i] += value * weight_gradient[at(stride, group, o, i, tap)];
    });
    for (int64_t k = 0; k < all; ++k) target[k] = channels == 1 ? T{0} : static_cast<T>(sums[k]);
  }

 private:
  static constexpr int64_t kProducts = 1024;
  static constexpr int64_t kTaps = 32;            // whose products with each other are that many
  static constexpr int64_t kOffsets = 4 * kTaps;  // kept, of at most three dimensions

  int64_t at(const Strides& stride, int64_t group, int64_t o, int64_t i, int64_t tap) const {
    return (group * geometry_.outputs + o) * stride.output + i * stride.channel + stride.tap[tap];
  }

  T exponential(int64_t group, int64_t i, int64_t j) const {
    const int64_t first = group * geometry_.channels;
    return psi_ == nullptr ? T{1} : std::exp(psi_[first + j] - psi_[first + i]);
  }

  void add_weighted(T* r, int64_t group, int64_t i, int64_t j, T value) const {
    if (value != 0) r[i] += value * exponential(group, i, j);
  }

  template <class Visit>
  void for_each_pair(const Visit& visit) const {
    for (int64_t group = 0; group < geometry_.groups; ++group) {
      for (int64_t i = 0; i < geometry_.channels; ++i) {
        for (int64_t j = 0; j < geometry_.channels; ++j) visit(group, i, j);
      }
    }
  }

  template <class Visit>
  void for_each_product(const Visit& visit) const {
    for (int64_t o = 0; o < geometry_.outputs; ++o) {
      for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
        for (int64_t other = 0; other < geometry_.taps; ++other) {
          const int64_t offset = number_[other] - number_[tap];
          if (offset >= 0) visit(o, tap, other, offset);
        }
      }
    }
  }

  template <class Visit>
  void for_each_weight(const Visit& visit) const {
    for (int64_t group = 0; group < geometry_.groups; ++group) {
      for (int64_t o = 0; o < geometry_.outputs; ++o) {
        for (int64_t i = 0; i < geometry_.channels; ++i) {
          for (int64_t tap = 0; tap < geometry_.taps; ++tap) visit(group, o, i, tap);
        }
      }
    }
  }

  const T* weight_;
  const T* psi_;
  const Geometry& geometry_;
  const Strides& stride_;
  int64_t kept_;
  int64_t number_[kTaps];  // of taps: their differences are offsets
};

}  // namespace fastlip::gram_rowsum

// The passes of block_conv between matrix products: one factor P + (I - P) z makes a kernel one tap longer along an
// axis, its adjoint one tap shorter. Arrays are (outer, taps, inner), taps along the factor's axis.

#include <algorithm>
#include <cstdint>

#include "common/parallel.h"
#include "common/registry.h"

namespace fastlip {
namespace {

// longer[o, t] = product[o, t] + (kernel[o, t - 1] - product[o, t - 1]), t <= taps, terms beyond either end left out.
template <class T>
void block_conv_longer(const T* kernel, const T* product, T* longer, int64_t outer, int64_t taps, int64_t inner) {
  parallel_pairs(outer, taps + 1, inner, [&](int64_t o, int64_t t) {
    const int64_t here = (o * taps + t) * inner, before = here - inner;
    T* target = longer + (o * (taps + 1) + t) * inner;
    if (t == 0) {
      std::copy_n(product + here, inner, target);
    } else if (t == taps) {
      for (int64_t i = 0; i < inner; ++i) target[i] = kernel[before + i] - product[before + i];
    } else {
      for (int64_t i = 0; i < inner; ++i) target[i] = product[here + i] + (kernel[before + i] - product[before + i]);
    }
  });
}

// difference[o, t] = longer[o, t] - longer[o, t + 1] and rest[o, t] = longer[o, t + 1], t < taps.
template <class T>
void block_conv_shorter(const T* longer, T* difference, T* rest, int64_t outer, int64_t taps, int64_t inner) {
  parallel_pairs(outer, taps, inner, [&](int64_t o, int64_t t) {
    const T* first = longer + (o * (taps + 1) + t) * inner;
    T* D = difference + (o * taps + t) * inner;
    T* R = rest + (o * taps + t) * inner;
    for (int64_t i = 0; i < inner; ++i) {
      const T second = first[inner + i];
      D[i] = first[i] - second;
      R[i] = second;
    }
  });
}

FASTLIP_KERNEL(block_conv_longer_float32, block_conv_longer<float>);
FASTLIP_KERNEL(block_conv_longer_float64, block_conv_longer<double>);
FASTLIP_KERNEL(block_conv_shorter_float32, block_conv_shorter<float>);
FASTLIP_KERNEL(block_conv_shorter_float64, block_conv_shorter<double>);

}  // namespace
}  // namespace fastlip

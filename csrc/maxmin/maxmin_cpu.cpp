// MaxMin on the CPU: sorts pairs of channels, (a, b) -> (max, min), and keeps one bit per pair (b > a).
//
// x is (outer, channels, inner), contiguous. inner == 1 is a matrix or a channels-last image. A "run" is a stretch
// of pairs along memory with bytes of its own in the mask: ceil(length / 8).
//   inner > 1:  one run per (outer, pair), length inner; mask (outer, channels / 2, ceil(inner / 8)).
//   inner == 1: one run per outer, length channels / 2; mask (outer, ceil((channels / 2) / 8)).

#include <algorithm>
#include <cstdint>

#include "common/parallel.h"
#include "common/registry.h"
#include "maxmin/pairs.h"

namespace fastlip {
namespace {

template <class Type, bool compare>
void rows(const typename Type::Storage* x, typename Type::Storage* y, uint8_t* bits, int64_t outer,
          int64_t channels, bool halves) {
  const int64_t pairs = channels / 2, mask_stride = (pairs + 7) / 8;
  parallel_for(outer, grain_of(channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* in = x + row * channels;
      auto* out = y + row * channels;
      uint8_t* mask = bits + row * mask_stride;
      if (halves) {
        separate_run<Type, compare>(in, in + pairs, out, out + pairs, mask, pairs);
      } else {
        interleaved_run<Type, compare>(in, out, mask, pairs);
      }
      if (channels % 2 != 0) out[channels - 1] = in[channels - 1];
    }
  });
}

template <class Type, bool compare>
void planes(const typename Type::Storage* x, typename Type::Storage* y, uint8_t* bits, int64_t outer,
            int64_t channels, int64_t inner, bool halves) {
  const int64_t pairs = channels / 2, mask_stride = (inner + 7) / 8, slots = pairs + channels % 2;
  parallel_pairs(outer, slots, inner, [&](int64_t image, int64_t pair) {
    if (pair == pairs) {  // the odd channel out
      const int64_t last = (image * channels + channels - 1) * inner;
      std::copy_n(x + last, inner, y + last);
      return;
    }
    const int64_t first = (image * channels + (halves ? pair : 2 * pair)) * inner;
    const int64_t second = first + (halves ? pairs : 1) * inner;
    separate_run<Type, compare>(x + first, x + second, y + first, y + second,
                                bits + (image * pairs + pair) * mask_stride, inner);
  });
}

// Images of four pixels, adjacent pairs: two pairs fill a vector, where a run of its own would fill half of one.
template <class Type, bool compare>
void quads(const typename Type::Storage* x, typename Type::Storage* y, uint8_t* bits, int64_t outer, int64_t channels) {
  const int64_t pairs = channels / 2;
  parallel_for(outer, grain_of(4 * channels), [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const auto* in = x + image * 4 * channels;
      auto* out = y + image * 4 * channels;
      uint8_t* mask = bits + image * pairs;
      int64_t pair = 0;
      for (; pair + 2 <= pairs; pair += 2) two_quads<Type, compare>(in + 8 * pair, out + 8 * pair, mask + pair);
      for (in += 8 * pair, out += 8 * pair; pair < pairs; ++pair, in += 8, out += 8) {
        separate_run<Type, compare>(in, in + 4, out, out + 4, mask + pair, 4);
      }
      if (channels % 2 != 0) std::copy_n(in, 4, out);
    }
  });
}

template <class Type, bool compare>
void maxmin(const void* x, void* y, uint8_t* bits, int64_t outer, int64_t channels, int64_t inner, int64_t halves) {
  using T = typename Type::Storage;
  if (outer == 0 || channels == 0 || inner == 0) return;
  if (inner == 1) {
    rows<Type, compare>(static_cast<const T*>(x), static_cast<T*>(y), bits, outer, channels, halves != 0);
  } else if (inner == 4 && halves == 0) {
    quads<Type, compare>(static_cast<const T*>(x), static_cast<T*>(y), bits, outer, channels);
  } else {
    planes<Type, compare>(static_cast<const T*>(x), static_cast<T*>(y), bits, outer, channels, inner, halves != 0);
  }
}

}  // namespace

FASTLIP_KERNEL(maxmin_forward_float32, maxmin<Float32, true>);
FASTLIP_KERNEL(maxmin_forward_float64, maxmin<Float64, true>);
FASTLIP_KERNEL(maxmin_forward_float16, maxmin<Float16, true>);
FASTLIP_KERNEL(maxmin_forward_bfloat16, maxmin<BFloat16, true>);
FASTLIP_KERNEL(maxmin_swap_float32, maxmin<Float32, false>);
FASTLIP_KERNEL(maxmin_swap_float64, maxmin<Float64, false>);
FASTLIP_KERNEL(maxmin_swap_float16, maxmin<Float16, false>);
FASTLIP_KERNEL(maxmin_swap_bfloat16, maxmin<BFloat16, false>);

}  // namespace fastlip

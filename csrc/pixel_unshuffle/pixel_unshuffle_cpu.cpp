// Space to depth on channels-last images: y[n, h, w, (c, dy, dx)] = x[n, f h + dy, f w + dx, c], and its adjoint.
// Both move every element once: f² streams of pixels on one side, one stream on the other.

#include <cstdint>

#include "common/parallel.h"
#include "common/registry.h"
#include "common/simd.h"

namespace fastlip::pixel_unshuffle {
namespace {

template <class T>
struct Pair {
  Vec8<T> low, high;
};

// (a0, b0, a1, b1, ...) of sixteen, and the inverse.
template <class T>
Pair<T> zip(Vec8<T> a, Vec8<T> b) {
  return {__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11), __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)};
}

template <class T>
Pair<T> unzip(Vec8<T> low, Vec8<T> high) {
  return {__builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14),
          __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15)};
}

// y = (a0, b0, c0, d0, a1, ...): zipping a with c and b with d, and then the two.
template <class T>
void interleave4(const T* a, const T* b, const T* c, const T* d, T* y, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Pair<T> even = zip<T>(load8(a + i), load8(c + i)), odd = zip<T>(load8(b + i), load8(d + i));
    const Pair<T> first = zip<T>(even.low, odd.low), second = zip<T>(even.high, odd.high);
    store8<T>(y + 4 * i, first.low);
    store8<T>(y + 4 * i + kLanes, first.high);
    store8<T>(y + 4 * i + 2 * kLanes, second.low);
    store8<T>(y + 4 * i + 3 * kLanes, second.high);
  }
  for (; i < count; ++i) y[4 * i] = a[i], y[4 * i + 1] = b[i], y[4 * i + 2] = c[i], y[4 * i + 3] = d[i];
}

template <class T>
void deinterleave4(const T* y, T* a, T* b, T* c, T* d, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const T* source = y + 4 * i;
    const Pair<T> first = unzip<T>(load8(source), load8(source + kLanes));
    const Pair<T> second = unzip<T>(load8(source + 2 * kLanes), load8(source + 3 * kLanes));
    const Pair<T> even = unzip<T>(first.low, second.low), odd = unzip<T>(first.high, second.high);
    store8<T>(a + i, even.low);
    store8<T>(c + i, even.high);
    store8<T>(b + i, odd.low);
    store8<T>(d + i, odd.high);
  }
  for (; i < count; ++i) a[i] = y[4 * i], b[i] = y[4 * i + 1], c[i] = y[4 * i + 2], d[i] = y[4 * i + 3];
}

// x has strides (sn, sh, sw, 1); y is dense, (batch, height, width, channels * factor²).
template <class T>
void unshuffle(const T* x, T* y, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t factor,
               int64_t sn, int64_t sh, int64_t sw) {
  const int64_t square = factor * factor, row = width * channels * square;
  parallel_pairs(batch, height, row, [&](int64_t n, int64_t h) {
    T* target = y + (n * height + h) * row;
    for (int64_t w = 0; w < width; ++w, target += channels * square) {
      const T* source = x + n * sn + factor * h * sh + factor * w * sw;
      if (factor == 2) {
        interleave4(source, source + sw, source + sh, source + sh + sw, target, channels);
        continue;
      }
      for (int64_t d = 0; d < square; ++d) {
        const T* pixel = source + d / factor * sh + d % factor * sw;
        for (int64_t c = 0; c < channels; ++c) target[c * square + d] = pixel[c];
      }
    }
  });
}

// The adjoint and inverse: x is dense, (batch, factor * height, factor * width, channels).
template <class T>
void shuffle(const T* y, T* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t factor) {
  const int64_t square = factor * factor, row = width * channels * square;
  const int64_t sw = channels, sh = factor * width * sw;
  parallel_pairs(batch, height, row, [&](int64_t n, int64_t h) {
    const T* source = y + (n * height + h) * row;
    for (int64_t w = 0; w < width; ++w, source += channels * square) {
      T* target = x + (n * height + h) * factor * sh + factor * w * sw;
      if (factor == 2) {
        deinterleave4(source, target, target + sw, target + sh, target + sh + sw, channels);
        continue;
      }
      for (int64_t d = 0; d < square; ++d) {
        T* pixel = target + d / factor * sh + d % factor * sw;
        for (int64_t c = 0; c < channels; ++c) pixel[c] = source[c * square + d];
      }
    }
  });
}

}  // namespace

FASTLIP_KERNEL(pixel_unshuffle_float32, unshuffle<int32_t>);
FASTLIP_KERNEL(pixel_unshuffle_float64, unshuffle<int64_t>);
FASTLIP_KERNEL(pixel_unshuffle_float16, unshuffle<int16_t>);
FASTLIP_KERNEL(pixel_unshuffle_bfloat16, unshuffle<int16_t>);
FASTLIP_KERNEL(pixel_shuffle_float32, shuffle<int32_t>);
FASTLIP_KERNEL(pixel_shuffle_float64, shuffle<int64_t>);
FASTLIP_KERNEL(pixel_shuffle_float16, shuffle<int16_t>);
FASTLIP_KERNEL(pixel_shuffle_bfloat16, shuffle<int16_t>);

}  // namespace fastlip::pixel_unshuffle

// What surrounds the convolutions of a chain on channels-last images, one pass each way:
// forward  y = maxmin(z + bias), one bit per pair, and y with its halo for the next circular convolution;
// backward the pairs swapped back, the bias gradient, and the result with its halo for the adjoint convolution.

#include <cstdint>

#include "common/halo.h"
#include "common/registry.h"
#include "maxmin/pairs.h"

namespace fastlip::conv_chain {
namespace {

enum Activation : int64_t { kNone, kAdjacent, kHalves };

// Pairs along a row: adjacent pairs of an even number of channels run through the whole row, others pixel by pixel.
struct RowPairs {
  int64_t activation, channels, pixels, run, bytes;

  RowPairs(int64_t activation, const HaloGeometry& g) : activation(activation), channels(g.channels), pixels(g.width) {
    if (activation == kAdjacent && g.channels % 2 == 0) channels = g.row(), pixels = 1;
    run = channels / 2;
    bytes = (run + 7) / 8;
  }

  int64_t row_bytes() const { return activation == kNone ? 0 : pixels * bytes; }

  template <class Type, bool compare>
  void apply(const typename Type::Storage* in, typename Type::Storage* out, uint8_t* bits) const {
    for (int64_t pixel = 0; pixel < pixels; ++pixel, in += channels, out += channels, bits += bytes) {
      if (activation == kHalves) {
        separate_run<Type, compare>(in, in + run, out, out + run, bits, run);
      } else {
        interleaved_run<Type, compare>(in, out, bits, run);
      }
      if (channels % 2 != 0) out[channels - 1] = in[channels - 1];
    }
  }
};

// y and y with its halo (either may be null) from z (+ bias, if not null), or from residual - z where there is a residual.
template <class Type, class T = typename Type::Storage>
void forward(const T* z, const T* bias, const T* residual, T* y, T* extended, uint8_t* bits, int64_t activation,
             int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t left, int64_t right, int64_t top,
             int64_t bottom) {
  const HaloGeometry g{batch, height, width, channels, left, right, top, bottom};
  const RowPairs pairs(activation, g);
  std::vector<T> biases(bias == nullptr ? 0 : g.row());
  for (size_t i = 0; i < biases.size(); ++i) biases[i] = bias[i % channels];
  pass_over_rows(g, y, extended, [&](int64_t offset, int64_t row, T* target) {
    const T* source = z + offset;
    if (residual != nullptr) {
      for (int64_t i = 0; i < g.row(); ++i) target[i] = residual[offset + i] - source[i];
      source = target;
    } else if (bias != nullptr) {
      for (int64_t i = 0; i < g.row(); ++i) target[i] = source[i] + biases[i];
      source = target;
    }
    if (activation != kNone) {
      pairs.template apply<Type, true>(source, target, bits + row * pairs.row_bytes());
    } else if (source != target) {
      std::copy_n(source, g.row(), target);
    }
  });
}

// The gradient of z, without or with its halo, or both, and that of the bias where it is not null.
template <class Type, class T = typename Type::Storage>
void backward(const T* gradient, const uint8_t* bits, T* dense, T* extended, T* bias_gradient, int64_t activation,
              int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t left, int64_t right, int64_t top,
              int64_t bottom) {
  const HaloGeometry g{batch, height, width, channels, left, right, top, bottom};
  const RowPairs pairs(activation, g);
  ChannelSums sums(g);
  pass_over_rows(g, dense, extended, [&](int64_t offset, int64_t row, T* target) {
    if (activation == kNone) {
      std::copy_n(gradient + offset, g.row(), target);
    } else {
      // The swap only reads its bits.
      pairs.template apply<Type, false>(gradient + offset, target, const_cast<uint8_t*>(bits) + row * pairs.row_bytes());
    }
    if (bias_gradient != nullptr) sums.add(row, target);
  });
  if (bias_gradient != nullptr) sums.store(bias_gradient);
}

}  // namespace

FASTLIP_KERNEL(conv_chain_forward_float32, forward<Float32>);
FASTLIP_KERNEL(conv_chain_forward_float64, forward<Float64>);
FASTLIP_KERNEL(conv_chain_backward_float32, backward<Float32>);
FASTLIP_KERNEL(conv_chain_backward_float64, backward<Float64>);

}  // namespace fastlip::conv_chain

// The passes between the two convolutions of x - Wᵀ diag(s) relu(W x + b) on channels-last images:
// forward  h = relu(z + b); backward, with v = W ȳ, u = s∘v where h > 0, and the sums Σ u and Σ v∘h per channel.

#include <cstdint>
#include <vector>

#include "common/halo.h"
#include "common/registry.h"
#include "common/transpose.h"

namespace fastlip::sdp_residual {
namespace {

// NaN stays NaN.
template <class T>
void relu(const T* z, const T* bias, T* h, T* extended, int64_t batch, int64_t height, int64_t width, int64_t channels,
          int64_t left, int64_t right, int64_t top, int64_t bottom) {
  const HaloGeometry g{batch, height, width, channels, left, right, top, bottom};
  std::vector<T> biases(g.row());
  for (int64_t i = 0; i < g.row(); ++i) biases[i] = bias[i % channels];
  pass_over_rows(g, h, extended, [&](int64_t offset, int64_t, T* target) {
    for (int64_t i = 0; i < g.row(); ++i) {
      const T value = z[offset + i] + biases[i];
      target[i] = value < 0 ? T{0} : value;
    }
  });
}

template <class T>
void relu_backward(const T* v, const T* h, const T* scale, T* u, T* extended, T* u_sum, T* product_sum, int64_t batch,
                   int64_t height, int64_t width, int64_t channels, int64_t left, int64_t right, int64_t top,
                   int64_t bottom) {
  const HaloGeometry g{batch, height, width, channels, left, right, top, bottom};
  std::vector<T> scales(g.row());
  for (int64_t i = 0; i < g.row(); ++i) scales[i] = scale[i % channels];
  ChannelSums sums(g), products(g);
  pass_over_rows(g, u, extended, [&](int64_t offset, int64_t row, T* target) {
    thread_local std::vector<T> product;
    product.resize(g.row());
    for (int64_t i = 0; i < g.row(); i += kLaneCount<T>) {
      const int64_t used = g.row() - i;
      const Lanes<T> hidden = load_first(h + offset + i, used), value = load_first(v + offset + i, used);
      store_first<T>(product.data() + i, value * hidden, used);
      store_first<T>(target + i, hidden > 0 ? load_first(scales.data() + i, used) * value : Lanes<T>{}, used);
    }
    products.add(row, product.data());
    sums.add(row, target);
  });
  sums.store(u_sum);
  products.store(product_sum);
}

}  // namespace

FASTLIP_KERNEL(sdp_residual_relu_float32, relu<float>);
FASTLIP_KERNEL(sdp_residual_relu_float64, relu<double>);
FASTLIP_KERNEL(sdp_residual_relu_backward_float32, relu_backward<float>);
FASTLIP_KERNEL(sdp_residual_relu_backward_float64, relu_backward<double>);

}  // namespace fastlip::sdp_residual

// r_i = Σ_j A_ij e^{ψ_j - ψ_i} with A_ij = Σ_δ |v[i,j,δ]|, v[i,j,δ] = Σ_{o,τ} W[o,i,τ] W[o,j,τ+δ], on the CPU.
//
// v[j,i,-δ] = v[i,j,δ], so A is symmetric and the tiles (I, J) with I <= J of 32 x 32 channels suffice, and on the
// diagonal half the offsets. Each tile of v exists only while its thread reduces it. The forward leaves the signs of v
// as bits; the backward is the product W̄[o,i,τ] = Σ_{j,σ} W[o,j,σ] S[i,j,σ-τ] (E_ij + E_ji), E_ij = r̄_i e^{ψ_j - ψ_i}.
// Results do not depend on the number of threads: each job owns what it writes, and sums over jobs have a fixed order.

#include <algorithm>
#include <cmath>
#include <limits>
#include <cstdint>

#include "common/registry.h"
#include "gram_rowsum/backward.h"
#include "gram_rowsum/backward_points.h"
#include "gram_rowsum/forward.h"
#include "gram_rowsum/forward_points.h"
#include "gram_rowsum/geometry.h"
#include "gram_rowsum/small.h"

namespace fastlip::gram_rowsum {
namespace {

// Whether a weight is large enough for the products of points.h and valid.h to take less time than those of all taps.
inline bool by_points(const Geometry& geometry) {
  return geometry.kernel == Sizes{1, 3, 3} && std::min(geometry.channels, geometry.outputs) >= 2 * kTile;
}

// Whether no factor of the gradient is infinite, as differences of infinities are not a number.
template <class T>
bool is_bounded(const T* gradient, const T* psi, int64_t channels) {
  constexpr T large = std::numeric_limits<T>::max() / 4096, range = 40;
  T most{0}, low{0}, high{0};
  for (int64_t i = 0; i < channels; ++i) {
    if (!(std::abs(gradient[i]) <= large) || (psi != nullptr && !std::isfinite(psi[i]))) return false;
    most = std::max(most, std::abs(gradient[i]));
    const T exponent = psi == nullptr ? T{0} : psi[i];
    low = i == 0 ? exponent : std::min(low, exponent), high = i == 0 ? exponent : std::max(high, exponent);
  }
  return high - low <= range && most * std::exp(high - low) <= large;
}

// weight is (groups * outputs, channels, depth, height, width); n and s are its sizes and strides, g the strides of
// its gradient.
template <class T>
void forward(const T* weight, const T* psi, T* r, uint32_t* signs, int64_t groups, int64_t n0, int64_t n1, int64_t n2,
             int64_t n3, int64_t n4, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4) {
  const Geometry geometry{groups, n0 / groups, n1, {n2, n3, n4}};
  const Strides stride(s0, s1, geometry.kernel, {s2, s3, s4});
  if (n0 == 0) {
    std::fill_n(r, groups * n1, T{0});
  } else if (n1 > 0 && Small<T>::fits(geometry)) {
    Small<T>(weight, psi, geometry, stride).forward(r, signs);
  } else if (n1 > 0) {
    Forward<T> job(weight, psi, r, signs, geometry, stride);
    if constexpr (sizeof(T) == 4) {
      if (by_points(geometry)) {
        const Spread<T> spread(weight, geometry, stride);
        if (spread.even()) return ForwardByPoints<T>(weight, spread, signs, geometry, stride, job).run();
      }
    }
    job.run();
  }
}

template <class T>
void backward(const T* gradient, const T* weight, const T* psi, const T* r, const uint32_t* signs, T* weight_gradient,
              T* psi_gradient, int64_t groups, int64_t n0, int64_t n1, int64_t n2, int64_t n3, int64_t n4, int64_t s0,
              int64_t s1, int64_t s2, int64_t s3, int64_t s4, int64_t g0, int64_t g1, int64_t g2, int64_t g3,
              int64_t g4) {
  const Geometry geometry{groups, n0 / groups, n1, {n2, n3, n4}};
  const Strides stride(s0, s1, geometry.kernel, {s2, s3, s4}), gradient_stride(g0, g1, geometry.kernel, {g2, g3, g4});
  if (n0 == 0 || n1 == 0) {
    if (psi != nullptr) std::fill_n(psi_gradient, groups * n1, T{0});
    return;
  }
  if (Small<T>::fits(geometry)) {
    const Small<T> job(weight, psi, geometry, stride);
    job.backward(gradient, signs, weight_gradient, gradient_stride);
    if (psi != nullptr) job.psi_gradient(gradient, r, weight_gradient, gradient_stride, psi_gradient);
    return;
  }
  if constexpr (sizeof(T) == 4) {
    if (by_points(geometry) && is_bounded(gradient, psi, groups * n1) && Spread<T>(weight, geometry, stride).even()) {
      BackwardByPoints<T> job(gradient, weight, psi, signs, weight_gradient, geometry, stride, gradient_stride);
      job.run();
      return job.psi_gradient(r, psi_gradient);
    }
  }
  Backward<T> job(gradient, weight, psi, signs, weight_gradient, geometry, stride, gradient_stride);
  job.run();
  job.psi_gradient(r, psi_gradient);
}

}  // namespace
}  // namespace fastlip::gram_rowsum

namespace fastlip {

FASTLIP_KERNEL(gram_rowsum_forward_float32, gram_rowsum::forward<float>);
FASTLIP_KERNEL(gram_rowsum_forward_float64, gram_rowsum::forward<double>);
FASTLIP_KERNEL(gram_rowsum_backward_float32, gram_rowsum::backward<float>);
FASTLIP_KERNEL(gram_rowsum_backward_float64, gram_rowsum::backward<double>);

}  // namespace fastlip

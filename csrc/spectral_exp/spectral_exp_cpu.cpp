// Batched exponentials exp((K - Kᴴ) / 2), and their gradients, on the CPU.
//
// Each matrix is one thread's work (or, where there are few, each strip of its columns): results do not depend on the
// number of threads. Matrices with a large norm are reported to the caller.

#include <cstdint>

#include "common/registry.h"
#include "linalg/schedule.h"
#include "spectral_exp/exponential.h"

namespace fastlip::spectral_exp {
namespace {

// k and e are (batch, n, n). failed[i] is whether e[i] is left unwritten.
template <class T, bool complex>
void forward(const T* k, T* e, bool* failed, int64_t batch, int64_t n) {
  const linalg::Schedule schedule(batch, n, n);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * n * n * Planar<T, complex>::kPlanes;
    failed[i] = !Exponential<T, complex>(n, false, schedule.inside).run(k + at, e + at);
  });
}

template <class T, bool complex>
void backward(const T* gradient, const T* k, T* k_gradient, bool* failed, int64_t batch, int64_t n) {
  const linalg::Schedule schedule(batch, n, n);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * n * n * Planar<T, complex>::kPlanes;
    Exponential<T, complex> exponential(n, true, schedule.inside);
    failed[i] = !exponential.pull_back(gradient + at, k + at, k_gradient + at);
  });
}

}  // namespace
}  // namespace fastlip::spectral_exp

namespace fastlip {

FASTLIP_KERNEL(spectral_exp_forward_float32, spectral_exp::forward<float, false>);
FASTLIP_KERNEL(spectral_exp_forward_float64, spectral_exp::forward<double, false>);
FASTLIP_KERNEL(spectral_exp_forward_complex64, spectral_exp::forward<float, true>);
FASTLIP_KERNEL(spectral_exp_forward_complex128, spectral_exp::forward<double, true>);
FASTLIP_KERNEL(spectral_exp_backward_float32, spectral_exp::backward<float, false>);
FASTLIP_KERNEL(spectral_exp_backward_float64, spectral_exp::backward<double, false>);
FASTLIP_KERNEL(spectral_exp_backward_complex64, spectral_exp::backward<float, true>);
FASTLIP_KERNEL(spectral_exp_backward_complex128, spectral_exp::backward<double, true>);

}  // namespace fastlip

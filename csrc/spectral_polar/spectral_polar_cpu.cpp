// Batched unitary polar factors of square matrices, and their gradients, on the CPU.
//
// Each matrix is one thread's work (or, where there are few, each strip of its columns): results do not depend on the
// number of threads. Ill-conditioned matrices are reported to the caller.

#include <cstdint>

#include "cayley/schedule.h"
#include "common/registry.h"
#include "spectral_polar/adjoint.h"
#include "spectral_polar/factor.h"

namespace fastlip::spectral_polar {
namespace {

// v and q are (batch, n, n). failed[i] is whether q[i] is left unwritten.
template <class T, bool complex>
void forward(const T* v, T* q, bool* failed, int64_t batch, int64_t n) {
  const cayley::Schedule schedule(batch, n, n);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * n * n * Planar<T, complex>::kPlanes;
    failed[i] = !Factor<T, complex>(n, schedule.inside).run(v + at, q + at);
  });
}

template <class T, bool complex>
void backward(const T* gradient, const T* q, const T* v, T* v_gradient, bool* failed, int64_t batch, int64_t n) {
  const cayley::Schedule schedule(batch, n, n);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * n * n * Planar<T, complex>::kPlanes;
    failed[i] = !Adjoint<T, complex>(n, schedule.inside).run(gradient + at, q + at, v + at, v_gradient + at);
  });
}

}  // namespace
}  // namespace fastlip::spectral_polar

namespace fastlip {

FASTLIP_KERNEL(spectral_polar_forward_float32, spectral_polar::forward<float, false>);
FASTLIP_KERNEL(spectral_polar_forward_float64, spectral_polar::forward<double, false>);
FASTLIP_KERNEL(spectral_polar_forward_complex64, spectral_polar::forward<float, true>);
FASTLIP_KERNEL(spectral_polar_forward_complex128, spectral_polar::forward<double, true>);
FASTLIP_KERNEL(spectral_polar_backward_float32, spectral_polar::backward<float, false>);
FASTLIP_KERNEL(spectral_polar_backward_float64, spectral_polar::backward<double, false>);
FASTLIP_KERNEL(spectral_polar_backward_complex64, spectral_polar::backward<float, true>);
FASTLIP_KERNEL(spectral_polar_backward_complex128, spectral_polar::backward<double, true>);

}  // namespace fastlip

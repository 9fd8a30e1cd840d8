// Batched polar factors of matrices, and their gradients, on the CPU.
//
// Each matrix is one thread's work (or, where there are few, each strip of its columns): results do not depend on the
// number of threads. Ill-conditioned matrices are reported to the caller.

#include <cstdint>

#include "common/registry.h"
#include "linalg/schedule.h"
#include "polar/adjoint.h"
#include "polar/factor.h"

namespace fastlip::polar {
namespace {

// v and q are (batch, rows, columns). failed[i] is whether q[i] is left unwritten.
template <class T, bool complex>
void forward(const T* v, T* q, bool* failed, int64_t batch, int64_t rows, int64_t columns) {
  const Shape shape(rows, columns);
  const linalg::Schedule schedule(batch, shape.rows, shape.columns);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * rows * columns * Planar<T, complex>::kPlanes;
    failed[i] = !Factor<T, complex>(shape, schedule.inside).run(v + at, q + at);
  });
}

template <class T, bool complex>
void backward(const T* gradient, const T* q, const T* v, T* v_gradient, bool* failed, int64_t batch, int64_t rows,
              int64_t columns) {
  const Shape shape(rows, columns);
  const linalg::Schedule schedule(batch, shape.rows, shape.columns);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * rows * columns * Planar<T, complex>::kPlanes;
    failed[i] = !Adjoint<T, complex>(shape, schedule.inside).run(gradient + at, q + at, v + at, v_gradient + at);
  });
}

}  // namespace
}  // namespace fastlip::polar

namespace fastlip {

FASTLIP_KERNEL(polar_forward_float32, polar::forward<float, false>);
FASTLIP_KERNEL(polar_forward_float64, polar::forward<double, false>);
FASTLIP_KERNEL(polar_forward_complex64, polar::forward<float, true>);
FASTLIP_KERNEL(polar_forward_complex128, polar::forward<double, true>);
FASTLIP_KERNEL(polar_backward_float32, polar::backward<float, false>);
FASTLIP_KERNEL(polar_backward_float64, polar::backward<double, false>);
FASTLIP_KERNEL(polar_backward_complex64, polar::backward<float, true>);
FASTLIP_KERNEL(polar_backward_complex128, polar::backward<double, true>);

}  // namespace fastlip

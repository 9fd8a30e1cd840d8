// Batched Cayley transforms Q = [2B - I; -2VB], B = (I + U - Uᴴ + VᴴV)⁻¹, and their gradients, on the CPU.
//
// I + A has a Hermitian part of at least I, and so has every Schur complement: elimination needs no pivoting, but its
// rounding error grows with ‖A‖. A cheap estimate of QᴴQ - I decides whether float32 suffices; otherwise the matrix is
// transformed in float64, as tall ones of large entries always are. What is too inaccurate even then is reported to the
// caller. Each matrix is one thread's work (or, where there are few, each strip of its columns): results do not depend
// on the number of threads.

#include <cstdint>
#include <limits>

#include "cayley/backward.h"
#include "cayley/forward.h"
#include "common/registry.h"
#include "linalg/schedule.h"

namespace fastlip::cayley {

using linalg::Schedule;
namespace {

// The defect of orthonormality that is allowed, in roundings: twice what it allows of the singular values (README.md).
constexpr double kRoundings = 48;
// The root mean square of the singular values of I + A with which tall matrices are transformed in their own precision:
// with more of them B is small, and gradients need its digits (README.md).
constexpr double kLargest = 4;

template <class T, bool complex, class S>
bool transform(const S* m, S* q, S* inverse, int64_t rows, int64_t n, bool wide, bool inside) {
  Transform<T, complex> transform(n, rows - n, inside);
  transform.run(m, wide);
  if (sizeof(T) < sizeof(double) && rows > n && !(transform.size() <= kLargest)) return false;
  if (!(transform.defect() <= kRoundings * std::numeric_limits<S>::epsilon())) return false;
  transform.write(q, inverse, wide);
  return true;
}

// m and q are (batch, rows, n) with rows >= n, or (batch, n, rows), the adjoints, if `wide`; inverse is (batch, n, n) where
// rows > n, else null. failed[i] is whether Q[i] could not be computed; it is left unwritten then.
template <class T, bool complex>
void forward(const T* m, T* q, T* inverse, bool* failed, int64_t batch, int64_t rows, int64_t n,
             int64_t wide) {
  constexpr int64_t kPlanes = complex ? 2 : 1;
  const Schedule schedule(batch, rows, n);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * rows * n * kPlanes;
    T* b = inverse == nullptr ? inverse : inverse + i * n * n * kPlanes;
    if (sizeof(T) < sizeof(double)) {
      failed[i] = !transform<T, complex>(m + at, q + at, b, rows, n, wide, schedule.inside);
      if (!failed[i]) return;
    }
    failed[i] = !transform<double, complex>(m + at, q + at, b, rows, n, wide, schedule.inside);
  });
}

// gradient, m and m_gradient are (batch, rows, n), or (batch, n, rows) if `wide`. Square matrices are given by Q alone,
// others by M and B.
template <class T, bool complex>
void backward(const T* gradient, const T* q, const T* m, const T* inverse, T* m_gradient, int64_t batch, int64_t rows,
              int64_t n, int64_t wide) {
  constexpr int64_t kPlanes = complex ? 2 : 1;
  const Schedule schedule(batch, rows, n);
  schedule.run(batch, [&](int64_t i) {
    const int64_t at = i * rows * n * kPlanes;
    const Adjoint<T, complex> adjoint(n, rows - n, schedule.inside);
    if (rows == n) {
      adjoint.run(gradient + at, q + at, m_gradient + at);
    } else {
      adjoint.run_tall(gradient + at, m + at, inverse + i * n * n * kPlanes, m_gradient + at, wide);
    }
  });
}

}  // namespace
}  // namespace fastlip::cayley

namespace fastlip {

FASTLIP_KERNEL(cayley_forward_float32, cayley::forward<float, false>);
FASTLIP_KERNEL(cayley_forward_float64, cayley::forward<double, false>);
FASTLIP_KERNEL(cayley_forward_complex64, cayley::forward<float, true>);
FASTLIP_KERNEL(cayley_forward_complex128, cayley::forward<double, true>);
FASTLIP_KERNEL(cayley_backward_float32, cayley::backward<float, false>);
FASTLIP_KERNEL(cayley_backward_float64, cayley::backward<double, false>);
FASTLIP_KERNEL(cayley_backward_complex64, cayley::backward<float, true>);
FASTLIP_KERNEL(cayley_backward_complex128, cayley::backward<double, true>);

}  // namespace fastlip

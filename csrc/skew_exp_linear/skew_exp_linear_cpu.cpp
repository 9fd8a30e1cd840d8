// The norm of a skew matrix, from which follows how many terms of its exponential's series count.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/registry.h"
#include "common/scratch.h"
#include "linalg/edges.h"
#include "linalg/planar.h"
#include "linalg/probe.h"

namespace fastlip::skew_exp_linear {
namespace {

// norm = the largest singular value of A, or a little more: the root of the largest eigenvalue of AᵀA = -A².
template <class T>
void skew_norm(const T* a, double* norm, int64_t n) {
  using Matrix = linalg::Planar<T, false>;
  Matrix matrix(nullptr, n);
  const int64_t size = linalg::vector_size(matrix);
  T* memory = scratch<T, struct SkewNorm>(Matrix::size(n, n) + size);
  matrix.data = memory + size;
  std::fill_n(memory, size, T{0});
  linalg::load(a, n, n, matrix);
  const auto product = [&](const T* x, T* y) {
    std::fill_n(memory, size, T{0});
    linalg::add_product(matrix, n, T{1}, x, memory);
    linalg::add_product(matrix, n, T{-1}, static_cast<const T*>(memory), y);
  };
  *norm = std::sqrt(linalg::edges_of<T>(product, n, size).highest);
}

}  // namespace
}  // namespace fastlip::skew_exp_linear

namespace fastlip {

FASTLIP_KERNEL(skew_norm_float32, skew_exp_linear::skew_norm<float>);
FASTLIP_KERNEL(skew_norm_float64, skew_exp_linear::skew_norm<double>);

}  // namespace fastlip

// What a layer of few inputs needs of its matrix's polar factor: the Gram matrix, the range of its eigenvalues, and
// inverses of the Gram matrix with shifts.

#include <cmath>
#include <cstdint>

#include "common/registry.h"
#include "common/scratch.h"
#include "linalg/edges.h"
#include "linalg/schedule.h"
#include "polar/matrix.h"

namespace fastlip::polar_linear {
namespace {

using linalg::Planar;

template <class T>
Planar<T, false> taken(T*& memory, int64_t rows, int64_t columns) {
  const Planar<T, false> matrix(memory, columns);
  memory += matrix.size(rows, columns);
  polar::clear_padding(matrix, rows);
  return matrix;
}

// result = unit² VᵀV (V Vᵀ of a wide V) and range = {unit, its smallest, its largest eigenvalue} for the power of two
// that brings V's entries near 1. The unit is 0 or NaN, and the result unwritten, where V counts as zero or is not finite.
template <class T>
void gram(const T* v, T* result, double* range, int64_t rows, int64_t columns) {
  using Matrix = Planar<T, false>;
  const polar::Shape shape(rows, columns);
  const int64_t m = shape.rows, n = shape.columns;
  const bool parallel = linalg::Schedule(1, m, n).inside;
  T* memory = scratch<T, Matrix>(Matrix::size(m, n) + Matrix::size(n, m) + Matrix::size(n, n));
  const Matrix x = taken(memory, m, n), adjoint = taken(memory, n, m), g = taken(memory, n, n);
  polar::load_both(v, shape, x, adjoint, parallel);
  const T unit = polar::unit_of(polar::largest_part(x, m));
  range[0] = unit;
  if (std::isnan(unit) || unit == 0) return;
  if (unit != 1) {
    polar::combine(x, m, {{unit, x}}, 0, parallel);
    polar::combine(adjoint, n, {{unit, adjoint}}, 0, parallel);
  }
  polar::multiply_half(g, adjoint, x, n, m, T{1}, parallel);
  const linalg::Edges edges = linalg::edges(g, n);
  range[1] = edges.lowest;
  range[2] = edges.highest;
  linalg::store(g, n, n, T{1}, T{0}, result);
}

// result[i] = (G + shifts[i] I)⁻¹
template <class T>
void inverses(const T* g, const double* shifts, T* result, int64_t count, int64_t n) {
  using Matrix = Planar<T, false>;
  const linalg::Schedule schedule(count, n, n);
  schedule.run(count, [&](int64_t i) {
    T* memory = scratch<T, struct Inverses>(Matrix::size(n, n));
    const Matrix matrix = taken(memory, n, n);
    linalg::load(g, n, n, matrix);
    linalg::add_to_diagonal(matrix, n, static_cast<T>(shifts[i]));
    linalg::PositiveInverse<T, false>(matrix, n, schedule.inside).run();
    linalg::store(matrix, n, n, T{1}, T{0}, result + i * n * n);
  });
}

}  // namespace
}  // namespace fastlip::polar_linear

namespace fastlip {

FASTLIP_KERNEL(polar_linear_gram_float32, polar_linear::gram<float>);
FASTLIP_KERNEL(polar_linear_gram_float64, polar_linear::gram<double>);
FASTLIP_KERNEL(polar_linear_inverses_float32, polar_linear::inverses<float>);
FASTLIP_KERNEL(polar_linear_inverses_float64, polar_linear::inverses<double>);

}  // namespace fastlip

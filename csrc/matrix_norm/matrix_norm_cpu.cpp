// A bound of the squared spectral norm of one real matrix, from a vector near the largest singular one, on the CPU.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/registry.h"
#include "common/scratch.h"
#include "linalg/schedule.h"
#include "matrix_norm/cholesky.h"
#include "polar/matrix.h"

namespace fastlip::matrix_norm {
namespace {

template <class T>
class Bound {
 public:
  Bound(int64_t rows, int64_t columns)
      : shape_(rows, columns), m_(shape_.rows), n_(shape_.columns), parallel_(linalg::Schedule(1, m_, n_).inside) {
    T* memory = scratch<T, Bound>(Matrix::size(m_, n_) + Matrix::size(n_, m_) + 2 * Matrix::size(n_, n_) + 4 * size());
    const auto take = [&](int64_t size) { return memory += size, memory - size; };
    tall_.data = take(Matrix::size(m_, n_));
    wide_.data = take(Matrix::size(n_, m_));
    gram_.data = take(Matrix::size(n_, n_));
    factor_.data = take(Matrix::size(n_, n_));
    for (T** vector : {&v_, &gv_, &r_, &gr_}) std::fill_n(*vector = take(size()), size(), T{0});
    polar::clear_padding(tall_, m_);
    polar::clear_padding(wide_, n_);
    polar::clear_padding(gram_, n_);
    polar::clear_padding(factor_, n_);
  }

  // `vector` is improved by this number of steps. Returns (1 + tolerance) times its Rayleigh quotient for the Gram matrix
  // G = MᵀM (of a wide M: MMᵀ), for which that times I minus G has a Cholesky factor. Where it has none, elimination ends
  // at a vector of a larger quotient, and goes on from there. NaN after too many of these.
  T run(const T* matrix, T* vector, int64_t steps, double tolerance) {
    polar::load_both(matrix, shape_, tall_, wide_, parallel_);
    polar::multiply_half(gram_, wide_, tall_, n_, m_, T{1}, parallel_);
    std::copy_n(vector, n_, v_);
    for (int64_t attempt = 0; attempt < kMostAttempts; ++attempt) {
      apply(v_, gv_);
      for (int64_t step = 0; step < steps; ++step) improve();
      const double norm = dot(v_, v_);
      const T bound = (1 + tolerance) * dot(v_, gv_) / norm;
      linalg::combine(factor_, n_, {{-1, gram_}}, bound, parallel_);
      const Cholesky<T> cholesky(factor_, n_, parallel_);
      const int64_t row = cholesky.run();
      if (row == n_) {
        for (int64_t i = 0; i < n_; ++i) vector[i] = v_[i] / std::sqrt(norm);
        return bound;
      }
      cholesky.direction(row, v_);
      steps = std::max<int64_t>(steps, 1);
    }
    return std::numeric_limits<T>::quiet_NaN();
  }

 private:
  using Matrix = linalg::Planar<T, false>;
  static constexpr int64_t kMostAttempts = 8;

  int64_t size() const { return linalg::padded<T>(n_); }

  // image = G x
  void apply(const T* x, T* image) const {
    std::fill_n(image, size(), T{0});
    for (int64_t i = 0; i < n_; ++i) {
      const T* row = gram_.at(i, 0);
      for (int64_t j = 0; j < size(); j += kLaneCount<T>) {
        store_lanes<T>(image + j, load_lanes(image + j) + x[i] * load_lanes(row + j));
      }
    }
  }

  double dot(const T* x, const T* y) const {
    double sum = 0;
    for (int64_t i = 0; i < n_; ++i) sum += static_cast<double>(x[i]) * y[i];
    return sum;
  }

  // The combination of v and its residual r = G v - q v whose Rayleigh quotient is largest.
  void improve() {
    const double norm = dot(v_, v_), quotient = dot(v_, gv_) / norm;
    for (int64_t i = 0; i < n_; ++i) r_[i] = gv_[i] - quotient * v_[i];
    apply(r_, gr_);
    // In the basis v / |v|, r / |r|, which is orthogonal, G is [[a, b], [b, c]].
    const double square = dot(r_, r_), b = dot(r_, gv_) / std::sqrt(norm * square), c = dot(r_, gr_) / square;
    if (!(b > 0)) return;
    const double half = (quotient - c) / 2, slope = b / (half + std::hypot(half, b));
    const double factor = slope * std::sqrt(norm / square);
    for (int64_t i = 0; i < n_; ++i) {
      v_[i] += factor * r_[i];
      gv_[i] += factor * gr_[i];
    }
  }

  const polar::Shape shape_;
  const int64_t m_;
  const int64_t n_;
  const bool parallel_;
  Matrix tall_{nullptr, n_};
  Matrix wide_{nullptr, m_};
  Matrix gram_{nullptr, n_};
  Matrix factor_{nullptr, n_};
  T* v_;
  T* gv_;
  T* r_;
  T* gr_;
};

// matrix is (rows, columns), vector has as many entries as the smaller side, and bound is one number.
template <class T>
void bound(const T* matrix, T* vector, T* bound, int64_t rows, int64_t columns, int64_t steps, double tolerance) {
  *bound = Bound<T>(rows, columns).run(matrix, vector, steps, tolerance);
}

}  // namespace
}  // namespace fastlip::matrix_norm

namespace fastlip {

FASTLIP_KERNEL(matrix_norm_float32, matrix_norm::bound<float>);

}  // namespace fastlip

// The few matrices whose faster transform was too inaccurate: they are refined by a Newton step, and transformed again
// in double precision and with pivots where that does not suffice.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cayley/defect.cuh"
#include "common/cuda_launch.cuh"
#include "common/number.cuh"

namespace fastlip::cayley {

// c[i, j] = value(i, j), by the whole block.
template <class N, class Value>
__device__ void fill_matrix(N* c, int64_t rows, int64_t columns, const Value& value) {
  for (int64_t item = threadIdx.x; item < rows * columns; item += kThreadsPerBlock) {
    c[item] = value(item / columns, item % columns);
  }
  __syncthreads();
}

// The row at or below the pivot's that has the largest entry in its column. NaN counts as the smallest.
template <class N>
__device__ int64_t find_pivot(const N* a, int64_t n, int64_t pivot) {
  __shared__ double sizes[kThreadsPerBlock];
  __shared__ int64_t rows[kThreadsPerBlock];
  double size = -1;
  int64_t row = pivot;
  for (int64_t i = pivot + threadIdx.x; i < n; i += kThreadsPerBlock) {
    const N x = a[i * n + pivot];
    const double here = fmax(fabs(real(x)), fabs(imaginary(x)));
    if (here > size) size = here, row = i;
  }
  sizes[threadIdx.x] = size;
  rows[threadIdx.x] = row;
  for (int step = kThreadsPerBlock / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(step) && sizes[threadIdx.x + step] > sizes[threadIdx.x]) {
      sizes[threadIdx.x] = sizes[threadIdx.x + step];
      rows[threadIdx.x] = rows[threadIdx.x + step];
    }
  }
  __syncthreads();
  const int64_t found = rows[0];
  __syncthreads();
  return found;
}

template <class N>
__device__ void swap(N& a, N& b) {
  const N kept = a;
  a = b;
  b = kept;
}

// In place; order has room for n row numbers.
template <class N>
__device__ void invert_with_pivots(N* a, int64_t* order, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    const int64_t row = find_pivot(a, n, k);
    if (threadIdx.x == 0) order[k] = row;
    for (int64_t j = threadIdx.x; row != k && j < n; j += kThreadsPerBlock) swap(a[k * n + j], a[row * n + j]);
    __syncthreads();
    const N scale = reciprocal(a[k * n + k]);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += kThreadsPerBlock) {
      a[k * n + j] = j == k ? scale : scale * a[k * n + j];
    }
    __syncthreads();
    // A row's factor is its entry in column k, which changes last.
    for (int64_t item = threadIdx.x; item < n * n; item += kThreadsPerBlock) {
      const int64_t i = item / n, j = item % n;
      if (i != k && j != k) a[item] = a[item] - a[i * n + k] * a[k * n + j];
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreadsPerBlock) {
      if (i != k) a[i * n + k] = number<N>(0.0, 0.0) - a[i * n + k] * scale;
    }
    __syncthreads();
  }
  for (int64_t k = n - 1; k >= 0; --k) {
    const int64_t other = order[k];
    for (int64_t i = threadIdx.x; other != k && i < n; i += kThreadsPerBlock) swap(a[i * n + k], a[i * n + other]);
    __syncthreads();
  }
}

// 1, or a factor that takes the norm of Q below 1 where it may exceed sqrt(3); from the largest row sum of QᴴQ.
template <class N>
__device__ double safe_factor(const N* gram, int64_t n) {
  __shared__ double norms[kThreadsPerBlock];
  double norm = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreadsPerBlock) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += sqrt(square(gram[i * n + j]));
    norm = sum > norm ? sum : norm;
  }
  norms[threadIdx.x] = norm;
  __syncthreads();
  for (int i = 0; i < kThreadsPerBlock; ++i) norm = norms[i] > norm ? norms[i] : norm;
  __syncthreads();
  return norm > 3 ? 1 / sqrt(norm) : 1;
}

template <class S, bool complex>
struct Rescue {
  using N = Number<S, complex>;
  using Wide = Number<double, complex>;
  const N* m;
  N *q, *inverse;  // inverse may be null
  const uint8_t* failed;
  Wide* memory;     // for each slot 2 n² + rows n numbers
  int64_t* orders;  // and n row numbers
  int64_t batch, rows, n, slots;
};

// Whether one Newton step B (2 I - (I + A) B) from B = (Q + I) / 2 makes Q accurate enough; Q is written only then. It
// takes two products in single precision, while elimination with pivots waits for all threads 5 n times. It removes the
// errors that grew in the elimination. Those from rounding I + A stay: this suffices for random matrices of norms up to
// about 400, and up to about 100 where one singular value is much larger than the others.
template <class S, bool complex>
__device__ bool refine(const Rescue<S, complex>& r, int64_t member, int64_t slot) {
  // Tall matrices were computed in double precision before; for double the memory of a slot would not do.
  if constexpr (std::is_same_v<S, double>) return false;
  if (r.rows > r.n) return false;
  using N = Number<S, complex>;
  const int64_t n = r.n;
  N *residual = reinterpret_cast<N*>(r.memory + slot * 3 * n * n), *b = residual + n * n, *vectors = b + n * n;
  const N* m = r.m + member * n * n;
  N* q = r.q + member * n * n;
  const auto one = [](int64_t i, int64_t j) { return number<N>(S(i == j), S{0}); };
  const auto before = [&](int64_t i, int64_t j) { return S(0.5) * (q[i * n + j] + one(i, j)); };
  fill_matrix(residual, n, n, [&](int64_t i, int64_t j) {
    N sum = one(i, j) - before(i, j);
    for (int64_t k = 0; k < n; ++k) sum = sum - (m[i * n + k] - conjugate(m[k * n + i])) * before(k, j);
    return sum;
  });
  fill_matrix(b, n, n, [&](int64_t i, int64_t j) {
    N sum = {};
    for (int64_t k = 0; k < n; ++k) sum = sum + before(i, k) * residual[k * n + j];
    return before(i, j) + sum;
  });
  const auto found = view<S, complex>(static_cast<const N*>(b), n);
  if (!(defect<S, complex>(found, found, n, 0, vectors) <= kAllowed<S>)) return false;
  fill_matrix(q, n, n, [&](int64_t i, int64_t j) { return S{2} * b[i * n + j] - one(i, j); });
  return true;
}

// Q with one Newton-Schulz step, Q (3 I - QᴴQ) / 2: however inaccurate Q is, no norm exceeds 1.
template <class S, bool complex>
__device__ void rescue(const Rescue<S, complex>& r, int64_t member, int64_t slot) {
  using N = Number<S, complex>;
  using Wide = Number<double, complex>;
  const int64_t n = r.n, rows = r.rows;
  Wide *a = r.memory + slot * (2 * n + rows) * n, *gram = a + n * n, *q = gram + n * n;
  const N* m = r.m + member * rows * n;
  const auto m_at = [&](int64_t i, int64_t j) { return convert<Wide>(m[i * n + j]); };
  fill_matrix(a, n, n, [&](int64_t i, int64_t j) {
    Wide sum = number<Wide>(i == j ? 1.0 : 0.0, 0.0) + (m_at(i, j) - conjugate(m_at(j, i)));
    for (int64_t k = n; k < rows; ++k) sum = sum + conjugate(m_at(k, i)) * m_at(k, j);
    return sum;
  });
  invert_with_pivots(a, r.orders + slot * n, n);
  if (r.inverse != nullptr) {
    fill_matrix(r.inverse + member * n * n, n, n, [&](int64_t i, int64_t j) { return convert<N>(a[i * n + j]); });
  }
  fill_matrix(q, rows, n, [&](int64_t i, int64_t j) {
    if (i < n) return 2.0 * a[i * n + j] - number<Wide>(i == j ? 1.0 : 0.0, 0.0);
    Wide sum = {};
    for (int64_t k = 0; k < n; ++k) sum = sum + m_at(i, k) * a[k * n + j];
    return -2.0 * sum;
  });
  fill_matrix(gram, n, n, [&](int64_t i, int64_t j) {
    Wide sum = {};
    for (int64_t k = 0; k < rows; ++k) sum = sum + conjugate(q[k * n + i]) * q[k * n + j];
    return sum;
  });
  const double factor = safe_factor(gram, n);
  fill_matrix(r.q + member * rows * n, rows, n, [&](int64_t i, int64_t j) {
    Wide sum = {};
    for (int64_t k = 0; k < n; ++k) sum = sum + q[i * n + k] * gram[k * n + j];
    return convert<N>((1.5 * factor) * q[i * n + j] - (0.5 * factor * factor * factor) * sum);
  });
}

template <class S, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock, 1) rescue_kernel(Rescue<S, complex> r) {
  for (int64_t member = blockIdx.x; member < r.batch; member += gridDim.x) {
    if (r.failed[member] && !refine(r, member, blockIdx.x)) rescue(r, member, blockIdx.x);
  }
}

}  // namespace fastlip::cayley

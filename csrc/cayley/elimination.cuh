// Inverses in a block's shared memory, by Gauss-Jordan elimination without pivots, 16 columns at a time.
//
// With K the columns of a step and E the inverse of their diagonal block: the rows of K become R = E A[K, :], every
// other row A[i, :] - A[i, K] R, where A[K, K] and A[i, K] count as E and 0: the result is the inverse, in place.
#pragma once

#include <cstdint>

#include "cayley/defect.cuh"
#include "cayley/product.cuh"
#include "common/cuda_launch.cuh"
#include "common/number.cuh"

namespace fastlip::cayley {

constexpr int kStep = 16;

// A matrix padded by an identity to multiples of four, rows four further apart: a column is in different banks.
template <class T, bool complex>
struct OnChip {
  static constexpr int kPlanes = complex ? 2 : 1;

  int size, row;
  T *matrix, *panel, *corner;  // (planes, size, row), (planes, kStep, size): A[:, K]ᵀ, (2, planes, kStep, kStep)

  static __host__ __device__ int padded(int64_t n) { return static_cast<int>(n + 3) / 4 * 4; }
  static __host__ __device__ int64_t numbers(int64_t n) {
    const int64_t size = padded(n);
    return kPlanes * (size * (size + 4) + kStep * size + 2 * kStep * kStep);
  }

  __device__ OnChip(T* memory, int64_t n) : size(padded(n)), row(size + 4), matrix(memory) {
    panel = matrix + kPlanes * size * row;
    corner = panel + kPlanes * kStep * size;
  }

  __device__ T* at(int plane, int i, int j) const { return matrix + (plane * size + i) * row + j; }
  __device__ T* panel_at(int plane, int k, int i) const { return panel + (plane * kStep + k) * size + i; }
  __device__ T* corner_at(int turn, int plane, int i, int j) const {
    return corner + ((turn * kPlanes + plane) * kStep + i) * kStep + j;
  }
  __device__ Number<T, complex> get(int i, int j) const {
    return number<Number<T, complex>>(*at(0, i, j), *at(kPlanes - 1, i, j));
  }
  __device__ void set(int i, int j, Number<T, complex> x) const {
    *at(0, i, j) = real(x);
    if constexpr (complex) *at(1, i, j) = imaginary(x);
  }
};

template <class T, bool complex>
__device__ Number<T, complex> corner_get(const OnChip<T, complex>& a, int turn, int i, int j) {
  return number<Number<T, complex>>(*a.corner_at(turn, 0, i, j), *a.corner_at(turn, a.kPlanes - 1, i, j));
}
template <class T, bool complex>
__device__ void corner_set(const OnChip<T, complex>& a, int turn, int i, int j, Number<T, complex> x) {
  *a.corner_at(turn, 0, i, j) = real(x);
  if constexpr (complex) *a.corner_at(turn, 1, i, j) = imaginary(x);
}

// Copies A[:, K] and inverts A[K, K], which begins at `first` and has `count` rows; returns which of the two corners
// holds E.
template <class T, bool complex>
__device__ int invert_corner(const OnChip<T, complex>& a, int first, int count) {
  using N = Number<T, complex>;
  for (int item = threadIdx.x; item < count * a.size; item += kThreadsPerBlock) {
    const int k = item % count, i = item / count;
    for (int plane = 0; plane < a.kPlanes; ++plane) *a.panel_at(plane, k, i) = *a.at(plane, i, first + k);
  }
  for (int item = threadIdx.x; item < count * count; item += kThreadsPerBlock) {
    const int i = item / count, j = item % count;
    corner_set(a, 0, i, j, a.get(first + i, first + j));
  }
  for (int pivot = 0; pivot < count; ++pivot) {
    __syncthreads();
    const int turn = pivot % 2;
    const N scale = reciprocal(corner_get(a, turn, pivot, pivot));
    for (int item = threadIdx.x; item < count * count; item += kThreadsPerBlock) {
      const int i = item / count, j = item % count;
      const N in_row = j == pivot ? scale : scale * corner_get(a, turn, pivot, j);
      const N kept = j == pivot ? number<N>(T{0}, T{0}) : corner_get(a, turn, i, j);
      corner_set(a, 1 - turn, i, j, i == pivot ? in_row : kept - corner_get(a, turn, i, pivot) * in_row);
    }
  }
  __syncthreads();
  return count % 2;
}

// A[K, :] = E A[K, :] and A[K, K] = E. A column's four parts are computed in one turn, so that it can stay in place.
template <class T, bool complex>
__device__ void scale_rows(const OnChip<T, complex>& a, int first, int count, int turn) {
  using N = Number<T, complex>;
  for (int start = 0; start < 4 * a.size; start += kThreadsPerBlock) {
    const int j = (start + static_cast<int>(threadIdx.x)) / 4, part = threadIdx.x % 4 * 4;
    const bool active = j < a.size && part < count, inside = j >= first && j < first + count;
    N sum[4] = {};
    if (active && !inside) {
      for (int k = 0; k < count; ++k) {
        const N x = a.get(first + k, j);
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[r] = sum[r] + corner_get(a, turn, part + r, k) * x;
      }
    } else if (active) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[r] = corner_get(a, turn, part + r, j - first);
    }
    __syncthreads();
    if (active) {
#pragma unroll
      for (int r = 0; r < 4; ++r) a.set(first + part + r, j, sum[r]);
    }
  }
  __syncthreads();
}

// A tile of 4 x 4 numbers: A[i, j] - A[i, K] A[K, j], or without its first term.
template <class T, bool complex>
__device__ void update_tile(const OnChip<T, complex>& a, int first, int count, int i, int j, bool cleared) {
  constexpr int kPlanes = complex ? 2 : 1;
  Quad<T> sum[kPlanes][4] = {};
#pragma unroll
  for (int r = 0; r < 4 * kPlanes; ++r) {
    if (!cleared) sum[r / 4][r % 4] = load_quad(a.at(r / 4, i + r % 4, j));
  }
#pragma unroll 4
  for (int k = 0; k < count; ++k) {
    const Quad<T> p_re = load_quad(a.panel_at(0, k, i)), r_re = load_quad(a.at(0, first + k, j));
    if constexpr (complex) {
      const Quad<T> p_im = load_quad(a.panel_at(1, k, i)), r_im = load_quad(a.at(1, first + k, j));
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const int row = r / 4, column = r % 4;
        sum[0][row].value[column] -= p_re.value[row] * r_re.value[column];
        sum[0][row].value[column] += p_im.value[row] * r_im.value[column];
        sum[1][row].value[column] -= p_re.value[row] * r_im.value[column];
        sum[1][row].value[column] -= p_im.value[row] * r_re.value[column];
      }
    } else {
#pragma unroll
      for (int r = 0; r < 16; ++r) sum[0][r / 4].value[r % 4] -= p_re.value[r / 4] * r_re.value[r % 4];
    }
  }
#pragma unroll
  for (int r = 0; r < 4 * kPlanes; ++r) store_quad(a.at(r / 4, i + r % 4, j), sum[r / 4][r % 4]);
}

template <class T, bool complex>
__device__ void invert(const OnChip<T, complex>& a) {
  const int tiles = a.size / 4;
  for (int first = 0; first < a.size; first += kStep) {
    const int count = a.size - first < kStep ? a.size - first : kStep;
    const int turn = invert_corner(a, first, count);
    scale_rows(a, first, count, turn);
    for (int tile = threadIdx.x; tile < tiles * tiles; tile += kThreadsPerBlock) {
      const int i = tile / tiles * 4, j = tile % tiles * 4;
      if (i < first || i >= first + count) update_tile(a, first, count, i, j, j >= first && j < first + count);
    }
    __syncthreads();
  }
}

// A = M, or I + M - Mᴴ; behind the matrix an identity.
template <class T, bool complex>
__device__ void load(const OnChip<T, complex>& a, const Matrices<const Number<T, complex>>& m, int64_t member, int n,
                     bool transform) {
  using N = Number<T, complex>;
  for (int item = threadIdx.x; item < a.size * a.size; item += kThreadsPerBlock) {
    const int i = item / a.size, j = item % a.size;
    a.set(i, j, i < n && j < n ? m.at(member, i, j) : number<N>(T(i == j && !transform), T{0}));
  }
  __syncthreads();
  if (!transform) return;
  for (int item = threadIdx.x; item < a.size * a.size; item += kThreadsPerBlock) {
    const int i = item / a.size, j = item % a.size;
    if (j > i) continue;
    const N lower = a.get(i, j), upper = a.get(j, i), one = number<N>(T(i == j), T{0});
    a.set(i, j, one + (lower - conjugate(upper)));  // the diagonal of M - Mᴴ has no real part
    a.set(j, i, one + (upper - conjugate(lower)));
  }
  __syncthreads();
}

// In place: A = A⁻¹.
template <class T, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    invert_kernel(Matrices<Number<T, complex>> matrices, int64_t batch, int64_t n) {
  const OnChip<T, complex> a(dynamic_shared<T>(), n);
  for (int64_t member = blockIdx.x; member < batch; member += gridDim.x) {
    load<T, complex>(a, matrices, member, static_cast<int>(n), false);
    invert(a);
    for (int item = threadIdx.x; item < n * n; item += kThreadsPerBlock) {
      const int i = item / static_cast<int>(n), j = item % static_cast<int>(n);
      matrices.at(member, i, j) = a.get(i, j);
    }
    __syncthreads();
  }
}

// The whole transform of square matrices.
template <class T, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock)
    transform_kernel(const Number<T, complex>* m, Number<T, complex>* q, uint8_t* failed, int64_t batch, int64_t n) {
  using N = Number<T, complex>;
  const OnChip<T, complex> a(dynamic_shared<T>(), n);
  for (int64_t member = blockIdx.x; member < batch; member += gridDim.x) {
    load<T, complex>(a, {m, n, n * n}, member, static_cast<int>(n), true);
    invert(a);
    const Planes<T> b{a.matrix, a.at(a.kPlanes - 1, 0, 0), a.row};
    const double found = defect<T, complex>(b, b, n, 0, reinterpret_cast<N*>(a.panel));
    if (threadIdx.x == 0) failed[member] = !(found <= kAllowed<T>);
    for (int item = threadIdx.x; item < n * n; item += kThreadsPerBlock) {
      const int i = item / static_cast<int>(n), j = item % static_cast<int>(n);
      q[member * n * n + item] = T{2} * a.get(i, j) - number<N>(T(i == j), T{0});
    }
    __syncthreads();
  }
}

}  // namespace fastlip::cayley

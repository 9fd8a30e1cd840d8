// Batched products of matrices in global memory: C = scale op(A) op(B) + kept D.
#pragma once

#include <cstdint>

#include "common/cuda_launch.cuh"
#include "common/number.cuh"

namespace fastlip::cayley {

// A matrix of each member of the batch: element (i, j) of member m at data[m * member + i * row + j].
template <class N>
struct Matrices {
  N* data;
  int64_t row, member;

  __device__ N& at(int64_t m, int64_t i, int64_t j) const { return data[m * member + i * row + j]; }
  Matrices part(int64_t i, int64_t j) const { return {data + i * row + j, row, member}; }
  template <class M>
    requires(std::is_same_v<M, const N> && !std::is_const_v<N>)
  __host__ __device__ operator Matrices<M>() const {
    return {data, row, member};
  }
};

template <class N>
struct Factor {
  Matrices<const N> matrix;
  bool adjoint = false;

  __device__ N at(int64_t m, int64_t i, int64_t j) const {
    return adjoint ? conjugate(matrix.at(m, j, i)) : matrix.at(m, i, j);
  }
};

template <class T, bool complex>
struct Product {
  using N = Number<T, complex>;
  Factor<N> a, b;
  Matrices<const N> d;
  Matrices<N> c;
  int64_t batch, rows, columns, length;
  T scale, kept;
};

constexpr int kThreadRows = kThreadsPerBlock == 256 ? 16 : 8;
static_assert(kThreadRows * kThreadRows == kThreadsPerBlock);
constexpr int kTile = 4 * kThreadRows;  // each thread computes 4 x 4 numbers
constexpr int kDepth = 16;

// Real parts, then imaginary ones; padded so that a column of threads writes to different banks.
template <class T, bool complex>
struct alignas(16) Panel {
  T value[complex ? 2 : 1][kDepth][kTile + 4];

  __device__ void set(int k, int i, Number<T, complex> x) {
    value[0][k][i] = real(x);
    if constexpr (complex) value[1][k][i] = imaginary(x);
  }
};

// along_length: the numbers next to each other in memory are those of one sum.
template <class T, bool complex, class At>
__device__ void fill(Panel<T, complex>& panel, bool along_length, int64_t size, int64_t length, const At& at) {
#pragma unroll
  for (int item = threadIdx.x; item < kTile * kDepth; item += kThreadsPerBlock) {
    const int k = along_length ? item % kDepth : item / kTile;
    const int i = along_length ? item / kDepth : item % kTile;
    panel.set(k, i, i < size && k < length ? at(i, k) : Number<T, complex>{});
  }
}

// sum += Σ_k left[k][i] right[k][j] for 4 x 4 numbers (i, j).
template <class T, bool complex>
__device__ void multiply_panels(const Panel<T, complex>& left, const Panel<T, complex>& right, int i, int j,
                                T (&sum)[complex ? 2 : 1][4][4]) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const Quad<T> a_re = load_quad(&left.value[0][k][i]), b_re = load_quad(&right.value[0][k][j]);
    if constexpr (complex) {
      const Quad<T> a_im = load_quad(&left.value[1][k][i]), b_im = load_quad(&right.value[1][k][j]);
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const int row = r / 4, column = r % 4;
        sum[0][row][column] += a_re.value[row] * b_re.value[column];
        sum[0][row][column] -= a_im.value[row] * b_im.value[column];
        sum[1][row][column] += a_re.value[row] * b_im.value[column];
        sum[1][row][column] += a_im.value[row] * b_re.value[column];
      }
    } else {
#pragma unroll
      for (int r = 0; r < 16; ++r) sum[0][r / 4][r % 4] += a_re.value[r / 4] * b_re.value[r % 4];
    }
  }
}

// D may be C: each number is read and written by one thread.
template <class T, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock, 2) product_kernel(Product<T, complex> p) {
  using N = Number<T, complex>;
  __shared__ Panel<T, complex> left, right;
  const int64_t tiles = (p.columns + kTile - 1) / kTile, tiles_of_member = (p.rows + kTile - 1) / kTile * tiles;
  const int i = threadIdx.x / kThreadRows * 4, j = threadIdx.x % kThreadRows * 4;
  for (int64_t item = blockIdx.x; item < p.batch * tiles_of_member; item += gridDim.x) {
    const int64_t member = item / tiles_of_member, tile = item % tiles_of_member;
    const int64_t row = tile / tiles * kTile, column = tile % tiles * kTile;
    T sum[complex ? 2 : 1][4][4] = {};
    for (int64_t k = 0; k < p.length; k += kDepth) {
      fill<T, complex>(left, !p.a.adjoint, p.rows - row, p.length - k,
                       [&](int64_t r, int64_t l) { return p.a.at(member, row + r, k + l); });
      fill<T, complex>(right, p.b.adjoint, p.columns - column, p.length - k,
                       [&](int64_t r, int64_t l) { return p.b.at(member, k + l, column + r); });
      __syncthreads();
      multiply_panels<T, complex>(left, right, i, j, sum);
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      const int64_t y = row + i + r / 4, x = column + j + r % 4;
      if (y >= p.rows || x >= p.columns) continue;
      T im = 0;
      if constexpr (complex) im = sum[1][r / 4][r % 4];
      const N product = number<N>(p.scale * sum[0][r / 4][r % 4], p.scale * im);
      p.c.at(member, y, x) = p.kept == 0 ? product : product + p.kept * p.d.at(member, y, x);
    }
  }
}

template <class T, bool complex>
void multiply(const Product<T, complex>& p, void* stream) {
  const int64_t tiles = (p.rows + kTile - 1) / kTile * ((p.columns + kTile - 1) / kTile);
  const int64_t blocks = std::min(p.batch * tiles, kMaxBlocks);
  launch(product_kernel<T, complex>, static_cast<unsigned>(blocks), stream, p);
}

}  // namespace fastlip::cayley

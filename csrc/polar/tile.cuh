// Matrices in a block's shared memory, and their products, of which a thread computes 4 x 4 numbers.
#pragma once

#include "common/cuda_launch.cuh"
#include "common/number.cuh"

namespace fastlip::polar {

// A matrix of at most side x side, its real and imaginary parts in planes. Four numbers are neighbours; the fours of
// a row are permuted by the row's number / 4, so that neither a row's nor a column's share their banks.
template <bool complex, int side>
struct Tile {
  static constexpr int kPlanes = complex ? 2 : 1;
  static constexpr int kNumbers = kPlanes * side * side;
  static constexpr int kThreads = side * side / 16 < kWarpSize ? kWarpSize : side * side / 16;
  using N = Number<float, complex>;

  float* memory;

  __device__ float* at(int plane, int i, int j) const { return memory + (plane * side + i) * side + (j ^ (i & ~3)); }
  __device__ N get(int i, int j) const { return number<N>(*at(0, i, j), *at(kPlanes - 1, i, j)); }
  __device__ void set(int i, int j, N x) const {
    *at(0, i, j) = real(x);
    if constexpr (complex) *at(1, i, j) = imaginary(x);
  }
};

// Where the 4 x 4 numbers begin that are this thread's, if any are.
struct Place {
  int i, j;
  bool mine;
};

// rows and columns are multiples of four, as in everything below.
__device__ inline Place place_in(int rows, int columns) {
  const int thread = static_cast<int>(threadIdx.x), across = columns / 4;
  const int i = thread / across * 4;
  return {i, thread % across * 4, i < rows};
}

// On and below the diagonal of a square matrix: its first threads have them, and whole warps none.
__device__ inline Place place_in_half(int size) {
  int i = 0, j = static_cast<int>(threadIdx.x);
  while (j > i) j -= ++i;
  return {4 * i, 4 * j, 4 * i < size};
}

template <bool complex>
struct Patch {
  static constexpr int kPlanes = complex ? 2 : 1;
  float part[kPlanes][4][4] = {};

  __device__ void scale(float factor) {
#pragma unroll
    for (int r = 0; r < 16 * kPlanes; ++r) part[r / 16][r / 4 % 4][r % 4] *= factor;
  }
};

// sum += op(A) B at the place, op(A) being Aᴴ or A.
template <bool adjoint, bool complex, int side>
__device__ void multiply(const Tile<complex, side>& a, const Tile<complex, side>& b, int length, Place place,
                         Patch<complex>& sum) {
  constexpr int kPlanes = complex ? 2 : 1;
  for (int k = 0; k < length; k += 4) {
    Quad<float> left[kPlanes][4];
#pragma unroll
    for (int r = 0; r < 4 * kPlanes; ++r) {
      left[r / 4][r % 4] = load_quad(adjoint ? a.at(r / 4, k + r % 4, place.i) : a.at(r / 4, place.i + r % 4, k));
    }
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const Quad<float> re = load_quad(b.at(0, k + l, place.j)), im = load_quad(b.at(kPlanes - 1, k + l, place.j));
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const int row = r / 4, column = r % 4;
        const float x = adjoint ? left[0][l].value[row] : left[0][row].value[l];
        sum.part[0][row][column] += x * re.value[column];
        if constexpr (complex) {
          const float y = adjoint ? -left[1][l].value[row] : left[1][row].value[l];
          sum.part[0][row][column] -= y * im.value[column];
          sum.part[1][row][column] += x * im.value[column];
          sum.part[1][row][column] += y * re.value[column];
        }
      }
    }
  }
}

template <bool complex, int side>
__device__ void store(const Tile<complex, side>& x, Place place, const Patch<complex>& patch) {
#pragma unroll
  for (int r = 0; r < 4 * patch.kPlanes; ++r) {
    Quad<float> row;
#pragma unroll
    for (int c = 0; c < 4; ++c) row.value[c] = patch.part[r / 4][r % 4][c];
    store_quad(x.at(r / 4, place.i + r % 4, place.j), row);
  }
}

// patch = a X + b patch
template <bool complex, int side>
__device__ void add(const Tile<complex, side>& x, Place place, float a, float b, Patch<complex>& patch) {
#pragma unroll
  for (int r = 0; r < 4 * patch.kPlanes; ++r) {
    const Quad<float> row = load_quad(x.at(r / 4, place.i + r % 4, place.j));
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      patch.part[r / 4][r % 4][c] = a * row.value[c] + b * patch.part[r / 4][r % 4][c];
    }
  }
}

// The patch, which is on or below the diagonal, and its image above: X is Hermitian (sign 1) or skew-Hermitian (-1).
template <int sign, bool complex, int side>
__device__ void store_mirrored(const Tile<complex, side>& x, Place place, Patch<complex>& patch) {
  if (place.i == place.j) {
#pragma unroll
    for (int r = 0; r < 16 * patch.kPlanes; ++r) {
      const int row = r / 4 % 4, column = r % 4, image = r / 16 == 0 ? sign : -sign;
      if (column > row) continue;
      float(&part)[4][4] = patch.part[r / 16];
      part[row][column] = (part[row][column] + image * part[column][row]) / 2;
      part[column][row] = image * part[row][column];
    }
  }
  store(x, place, patch);
  if (place.i == place.j) return;
#pragma unroll
  for (int r = 0; r < 4 * patch.kPlanes; ++r) {
    Quad<float> row;
#pragma unroll
    for (int c = 0; c < 4; ++c) row.value[c] = (r < 4 ? sign : -sign) * patch.part[r / 4][c][r % 4];
    store_quad(x.at(r / 4, place.j + r % 4, place.i), row);
  }
}

}  // namespace fastlip::polar

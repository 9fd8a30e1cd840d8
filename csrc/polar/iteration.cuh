// Scaled Newton-Schulz steps on a matrix in shared memory (fastlip/kernels/polar/README.md), by every thread of a block.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/cuda_launch.cuh"
#include "common/number.cuh"
#include "polar/tile.cuh"

namespace fastlip::polar {

// Wide matrices are read and written as their transposes, whose factor is Q's.
struct Batch {
  int64_t count, reals;  // the first matrices count as real
  int rows, columns;     // as seen here: tall or square
  bool transposed;
  int steps;
  float fine, tiny;

  __device__ int padded_rows() const { return (rows + 3) / 4 * 4; }
  __device__ int padded_columns() const { return (columns + 3) / 4 * 4; }
};

// visit(i, j, offset in memory) of every element of a matrix padded by multiples of four; neighbours in memory by
// neighbouring threads. The offset is that of no other element, and -1 behind the matrix.
template <int threads, class Visit>
__device__ void for_elements(const Batch& p, const Visit& visit) {
  const int inner = p.transposed ? p.rows : p.columns;
  const int across = p.transposed ? p.padded_rows() : p.padded_columns();
  for (int item = threadIdx.x; item < p.padded_rows() * p.padded_columns(); item += threads) {
    const int outer = item / across, within = item % across;
    const int i = p.transposed ? within : outer, j = p.transposed ? outer : within;
    visit(i, j, i < p.rows && j < p.columns ? outer * inner + within : -1);
  }
}

// One block's tiles and what its threads know of them.
template <bool complex, int side>
struct Chip {
  using X = Tile<complex, side>;
  using N = typename X::N;
  static constexpr int kThreads = X::kThreads, kWarps = kThreads / kWarpSize;

  static constexpr int64_t bytes(int tiles) { return (tiles * X::kNumbers + 4 * kWarps) * int64_t{sizeof(float)}; }

  const Batch p;
  float* const memory;
  float* const partials;  // two sums of every warp, twice: of peaks and bounds, of Gram matrices
  const int rows, columns;
  const Place whole, square, half;  // this thread's places in the matrix, in its Gram matrix, and in half of that

  __device__ Chip(const Batch& batch, int tiles)
      : p(batch),
        memory(dynamic_shared<float>()),
        partials(memory + tiles * X::kNumbers),
        rows(p.padded_rows()),
        columns(p.padded_columns()),
        whole(place_in(rows, columns)),
        square(place_in(columns, columns)),
        half(place_in_half(columns)) {}

  __device__ X tile(int index) const { return {memory + index * X::kNumbers}; }

  // The sum over the block of one number, and of another one the sum or the largest, in every thread. Ends with a
  // barrier after which the same `slot` is free at the next barrier.
  template <bool largest>
  __device__ void reduce(int slot, float& first, float& second) const {
    float* shared = partials + 2 * slot * kWarps;
    first = sum_of_warp(first);
    second = largest ? max_of_warp(second) : sum_of_warp(second);
    if (threadIdx.x % kWarpSize == 0) {
      shared[threadIdx.x / kWarpSize] = first;
      shared[kWarps + threadIdx.x / kWarpSize] = second;
    }
    __syncthreads();
    first = shared[0], second = shared[kWarps];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      first += shared[warp];
      second = largest ? fmaxf(second, shared[kWarps + warp]) : second + shared[kWarps + warp];
    }
  }

  // Returns the largest part of an element that this thread has seen. No barrier.
  __device__ float load(const X& x, const N* source, int64_t member) const {
    const N* matrix = source + member * p.rows * p.columns;
    float peak = 0;
    for_elements<kThreads>(p, [&](int i, int j, int offset) {
      N value = offset < 0 ? N{} : matrix[offset];
      if (member < p.reals) value = number<N>(real(value), 0.0f);
      x.set(i, j, value);
      peak = fmaxf(peak, fmaxf(fabsf(real(value)), fabsf(imaginary(value))));
    });
    return peak;
  }

  // X divided by its largest part; returns the factor, 0 for zeros. NaN and Inf become NaN.
  __device__ float load_scaled(const X& x, const N* source, int64_t member) const {
    float peak = load(x, source, member), none = 0;
    reduce<true>(1, none, peak);
    const float unit = peak <= p.tiny ? 0 : 1 / peak;
    scale(x, rows, unit);
    return unit;
  }

  __device__ void scale(const X& x, int length, float factor) const {
    const int across = columns / 4;
    for (int item = threadIdx.x; item < length * across; item += kThreads) {
#pragma unroll
      for (int plane = 0; plane < X::kPlanes; ++plane) {
        float* here = x.at(plane, item / across, item % across * 4);
        Quad<float> four = load_quad(here);
#pragma unroll
        for (int c = 0; c < 4; ++c) four.value[c] *= factor;
        store_quad(here, four);
      }
    }
    __syncthreads();
  }

  static __device__ float max_of_warp(float x) {
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
  }
};

// Of D = I - XᴴX.
struct Defect {
  float norm, trace;
};

// G = XᴴX of the first `length` rows. Ends with a barrier.
template <bool complex, int side>
__device__ Defect gram_of(const Chip<complex, side>& chip, const Tile<complex, side>& x, int length,
                          const Tile<complex, side>& gram) {
  const Place place = chip.half;
  float squares = 0, trace = 0;
  if (place.mine) {
    Patch<complex> sum;
    multiply<true>(x, x, length, place, sum);
    store_mirrored<1>(gram, place, sum);
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      const int i = place.i + r / 4;
      const bool diagonal = i == place.j + r % 4;
      const float re = (diagonal && i < chip.p.columns) - sum.part[0][r / 4][r % 4];
      squares += re * re;
      if (diagonal) trace += re;
      if constexpr (complex) squares += sum.part[1][r / 4][r % 4] * sum.part[1][r / 4][r % 4];
    }
    if (place.i != place.j) squares *= 2;  // the image above the diagonal
  }
  chip.template reduce<false>(0, squares, trace);
  return {sqrtf(squares), trace};
}

// 1 / an upper bound of the singular values: the root of the smaller of two norms of G; 0 for zeros.
template <bool complex, int side>
__device__ float inverse_bound(const Chip<complex, side>& chip, const Tile<complex, side>& gram) {
  constexpr int kShare = chip.kThreads / side;  // threads of one row
  const int i = static_cast<int>(threadIdx.x) / kShare;
  float squares = 0, sum = 0;
  if (i < chip.columns) {
    for (int j = static_cast<int>(threadIdx.x) % kShare * 4; j < chip.columns; j += 4 * kShare) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float here = square(gram.get(i, j + c));
        squares += here;
        sum += sqrtf(here);
      }
    }
  }
#pragma unroll
  for (int step = kShare / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  chip.template reduce<true>(1, squares, sum);
  const float bound = fminf(sqrtf(squares), sum);
  return bound == 0 ? 0 : 1 / sqrtf(bound);
}

// X divided by an upper bound of its singular values, by the factor that is returned, and XᴴX. Ends with a barrier.
template <bool complex, int side>
__device__ float normalise(const Chip<complex, side>& chip, const Tile<complex, side>& x, int length,
                           const Tile<complex, side>& gram, Defect& defect) {
  gram_of(chip, x, length, gram);
  const float factor = inverse_bound(chip, gram);
  chip.scale(x, length, factor);
  defect = gram_of(chip, x, length, gram);
  return factor;
}

// x -> a x + b x³
struct Cubic {
  float a, b;
};

// norm² / trace is at most the largest eigenvalue of D, hence 1 minus it at least the smallest of XᴴX; the best step
// for an interval that begins there, or the plain one, which is the last.
__device__ inline Cubic cubic_of(Defect d, bool more) {
  const float largest = d.trace > 0 ? fminf(d.norm * d.norm / d.trace, fminf(d.norm, 1.0f)) : 0;
  const float smallest = 1 - largest;
  const float square = more ? fminf(3 / (1 + sqrtf(smallest) + smallest), 2.0f) : 1;
  const float rho = sqrtf(square);
  return {1.5f * rho, -0.5f * rho * square};
}

// X = a X + b X G. Begins where G is complete and ends with a barrier.
template <bool complex, int side>
__device__ void advance(const Chip<complex, side>& chip, const Tile<complex, side>& x,
                        const Tile<complex, side>& gram, Cubic step) {
  Patch<complex> sum;
  if (chip.whole.mine) multiply<false>(x, gram, chip.columns, chip.whole, sum);
  __syncthreads();
  if (chip.whole.mine) {
    add(x, chip.whole, step.a, step.b, sum);
    store(x, chip.whole, sum);
  }
  __syncthreads();
}

// The same of a Hermitian X = H.
template <bool complex, int side>
__device__ void advance_hermitian(const Chip<complex, side>& chip, const Tile<complex, side>& h,
                                  const Tile<complex, side>& gram, Cubic step) {
  Patch<complex> sum;
  if (chip.half.mine) multiply<true>(h, gram, chip.columns, chip.half, sum);
  __syncthreads();
  if (chip.half.mine) {
    add(h, chip.half, step.a, step.b, sum);
    store_mirrored<1>(h, chip.half, sum);
  }
  __syncthreads();
}

// K = a K + b (K G + G K - H K H) with G = H²: the derivative of the step at H in a skew direction K. t is scratch.
template <bool complex, int side>
__device__ void advance_skew(const Chip<complex, side>& chip, const Tile<complex, side>& k,
                             const Tile<complex, side>& h, const Tile<complex, side>& gram,
                             const Tile<complex, side>& t, Cubic step) {
  if (chip.square.mine) {
    Patch<complex> sum;
    multiply<true>(k, h, chip.columns, chip.square, sum);  // KᴴH = -KH
    store(t, chip.square, sum);
  }
  __syncthreads();
  Patch<complex> sum;
  if (chip.half.mine) {
    multiply<true>(k, gram, chip.columns, chip.half, sum);  // KᴴG = -KG
    sum.scale(-1);
    multiply<true>(gram, k, chip.columns, chip.half, sum);
    multiply<true>(h, t, chip.columns, chip.half, sum);
  }
  __syncthreads();
  if (chip.half.mine) {
    add(k, chip.half, step.a, step.b, sum);
    store_mirrored<-1>(k, chip.half, sum);
  }
  __syncthreads();
}

}  // namespace fastlip::polar

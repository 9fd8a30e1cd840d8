// Polar factors of matrices of at most 64 x 64 on the GPU, and their gradients: one launch, one block a matrix.
//
// The iteration is that of fastlip/kernels/polar/newton_schulz.py. Everything it needs is in the block's shared memory,
// products are sums of float32. Nothing waits for the device, and the launches can be captured in a graph.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "common/cuda_launch.cuh"
#include "common/number.cuh"
#include "common/registry.h"
#include "polar/iteration.cuh"
#include "polar/tile.cuh"

namespace fastlip::polar {
namespace {

// Q of each matrix, and the Frobenius norm of QᴴQ - I. Q is NaN wherever one element of it is.
template <bool complex, int side>
__global__ void __launch_bounds__(Chip<complex, side>::kThreads, 1)
    forward_kernel(Batch p, const Number<float, complex>* v, Number<float, complex>* q, float* residual) {
  const Chip<complex, side> chip(p, 2);
  const auto x = chip.tile(0), gram = chip.tile(1);
  for (int64_t member = blockIdx.x; member < p.count; member += gridDim.x) {
    chip.load_scaled(x, v, member);
    Defect defect;
    normalise(chip, x, chip.rows, gram, defect);
    bool more = true;
    for (int step = 0; step < p.steps && more; ++step) {
      more = defect.norm > p.fine;
      advance(chip, x, gram, cubic_of(defect, more));
      defect = gram_of(chip, x, chip.rows, gram);
    }
    if (threadIdx.x == 0) residual[member] = defect.norm;
    auto* target = q + member * p.rows * p.columns;
    for_elements<chip.kThreads>(p, [&](int i, int j, int offset) {
      const float spread = 0 * defect.norm;
      if (offset >= 0) target[offset] = x.get(i, j) + number<Number<float, complex>>(spread, spread);
    });
    __syncthreads();
  }
}

// The tiles of a gradient's computation. Those of V and Q are used again.
template <bool complex, int side>
struct Work {
  using X = Tile<complex, side>;
  X gram, n, h, k, t;

  static __host__ __device__ int tiles(bool tall) { return tall ? 5 : 4; }
  __device__ Work(const Chip<complex, side>& chip, bool tall)
      : gram(chip.tile(0)), n(chip.tile(1)), h(chip.tile(2)), k(chip.tile(3)), t(chip.tile(tall ? 4 : 1)) {}
};

// H = QᴴV, K = (QᴴG - GᴴQ) / 2 and, of tall matrices, N = (I - QQᴴ) G; V is scaled by what is returned.
template <bool complex, int side>
__device__ float prepare(const Chip<complex, side>& chip, const Work<complex, side>& w, bool tall,
                         const Number<float, complex>* g, const Number<float, complex>* v,
                         const Number<float, complex>* q, int64_t member) {
  const auto factor = w.gram, given = w.n;
  const float unit = chip.load_scaled(given, v, member);
  chip.load(factor, q, member);
  __syncthreads();
  if (chip.half.mine) {
    Patch<complex> sum;
    multiply<true>(factor, given, chip.rows, chip.half, sum);
    multiply<true>(given, factor, chip.rows, chip.half, sum);
    sum.scale(0.5f);
    store_mirrored<1>(w.h, chip.half, sum);
  }
  __syncthreads();
  chip.load(given, g, member);
  __syncthreads();
  if (chip.half.mine) {
    Patch<complex> sum;
    multiply<true>(given, factor, chip.rows, chip.half, sum);
    sum.scale(-1);
    multiply<true>(factor, given, chip.rows, chip.half, sum);
    sum.scale(0.5f);
    store_mirrored<-1>(w.k, chip.half, sum);
  }
  if (tall) {
    if (chip.square.mine) {
      Patch<complex> sum;
      multiply<true>(factor, given, chip.rows, chip.square, sum);
      store(w.t, chip.square, sum);
    }
    __syncthreads();
    if (chip.whole.mine) {
      Patch<complex> sum;
      multiply<false>(factor, w.t, chip.columns, chip.whole, sum);
      add(given, chip.whole, 1, -1, sum);
      store(given, chip.whole, sum);
    }
  }
  __syncthreads();
  return unit;
}

// The gradient of V from that of Q: Q K + N where the steps on H converge, the gradient of Q itself elsewhere.
template <bool complex, int side>
__global__ void __launch_bounds__(Chip<complex, side>::kThreads, 1)
    backward_kernel(Batch p, const Number<float, complex>* g, const Number<float, complex>* v,
                    const Number<float, complex>* q, Number<float, complex>* result) {
  using N = Number<float, complex>;
  const bool tall = p.rows > p.columns;
  const Chip<complex, side> chip(p, Work<complex, side>::tiles(tall));
  const Work<complex, side> w(chip, tall);
  for (int64_t member = blockIdx.x; member < p.count; member += gridDim.x) {
    float unit = prepare(chip, w, tall, g, v, q, member);
    Defect defect;
    unit *= normalise(chip, w.h, chip.columns, w.gram, defect);
    bool more = true;
    for (int step = 0; step < p.steps && more; ++step) {
      more = defect.norm > p.fine;
      const Cubic cubic = cubic_of(defect, more);
      advance_skew(chip, w.k, w.h, w.gram, w.t, cubic);
      if (tall) advance(chip, w.n, w.gram, cubic);
      advance_hermitian(chip, w.h, w.gram, cubic);
      defect = gram_of(chip, w.h, chip.columns, w.gram);
    }
    chip.load(w.gram, q, member);
    __syncthreads();
    if (chip.whole.mine) {
      Patch<complex> sum;
      multiply<false>(w.gram, w.k, chip.columns, chip.whole, sum);
      if (tall) add(w.n, chip.whole, 1, 1, sum);
      store(w.n, chip.whole, sum);
    }
    __syncthreads();
    const int64_t start = member * p.rows * p.columns;
    const float factor = unit == 0 ? 1 : unit;
    for_elements<chip.kThreads>(p, [&](int i, int j, int offset) {
      if (offset < 0) return;
      N value = more ? g[start + offset] : w.n.get(i, j);
      if (member < p.reals) value = number<N>(real(value), 0.0f);
      result[start + offset] = factor * value;
    });
    __syncthreads();
  }
}

unsigned blocks_of(int64_t count) { return static_cast<unsigned>(std::min(count, kMaxBlocks)); }

Batch batch_of(int64_t count, int64_t rows, int64_t columns, int64_t reals, int64_t steps, double fine, double tiny) {
  const int first = static_cast<int>(rows), second = static_cast<int>(columns);
  Batch p = {};
  p.count = count, p.reals = reals, p.steps = static_cast<int>(steps);
  p.rows = std::max(first, second), p.columns = std::min(first, second), p.transposed = first < second;
  p.fine = static_cast<float>(fine), p.tiny = static_cast<float>(tiny);
  return p;
}

// run(side) with the smallest tiles that hold the matrices.
template <class Run>
void with_side(const Batch& p, const Run& run) {
  if (p.count == 0) return;
  if (p.rows > 64) throw std::invalid_argument("polar: matrices have at most 64 rows and columns");
  if (p.rows > 32) {
    run(std::integral_constant<int, 64>());
  } else if (p.rows > 16) {
    run(std::integral_constant<int, 32>());
  } else {
    run(std::integral_constant<int, 16>());
  }
}

// v, q: (count, rows, columns), the first `reals` of complex ones taken as real; residual: (count).
template <bool complex>
void forward(const void* v, void* q, void* residual, int64_t count, int64_t rows, int64_t columns, int64_t reals,
             int64_t steps, double fine, double tiny, void* stream) {
  using N = Number<float, complex>;
  const Batch p = batch_of(count, rows, columns, reals, steps, fine, tiny);
  with_side(p, [&](auto side) {
    using On = Chip<complex, side>;
    launch_blocks(forward_kernel<complex, side>, blocks_of(count), On::kThreads, On::bytes(2), stream, p,
                  static_cast<const N*>(v), static_cast<N*>(q), static_cast<float*>(residual));
  });
}

// gradient, v, q, result: (count, rows, columns), contiguous as all matrices here.
template <bool complex>
void backward(const void* gradient, const void* v, const void* q, void* result, int64_t count, int64_t rows,
              int64_t columns, int64_t reals, int64_t steps, double fine, double tiny, void* stream) {
  using N = Number<float, complex>;
  const Batch p = batch_of(count, rows, columns, reals, steps, fine, tiny);
  with_side(p, [&](auto side) {
    using On = Chip<complex, side>;
    const int64_t bytes = On::bytes(Work<complex, side>::tiles(p.rows > p.columns));
    launch_blocks(backward_kernel<complex, side>, blocks_of(count), On::kThreads, bytes, stream, p,
                  static_cast<const N*>(gradient), static_cast<const N*>(v), static_cast<const N*>(q),
                  static_cast<N*>(result));
  });
}

}  // namespace
}  // namespace fastlip::polar

namespace fastlip {

FASTLIP_KERNEL(polar_on_chip_forward_float32, polar::forward<false>);
FASTLIP_KERNEL(polar_on_chip_forward_complex64, polar::forward<true>);
FASTLIP_KERNEL(polar_on_chip_backward_float32, polar::backward<false>);
FASTLIP_KERNEL(polar_on_chip_backward_complex64, polar::backward<true>);

}  // namespace fastlip

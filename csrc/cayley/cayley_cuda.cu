// Batched Cayley transforms and their gradients on the GPU; the contract is cayley_cpu.cpp's, but for memory.
//
// Square matrices that fit a block's shared memory are one block's work from reading M to writing Q. Larger and tall
// ones are inverted in global memory, by 2 x 2 blocks whose diagonal ones are inverted on chip. Each result is
// measured where it is; the last launch transforms again, in double precision and with pivots, what was marked as too
// inaccurate. Nothing waits for the device: a launch sequence depends on sizes only and can be captured in a graph.

#include <cstdint>
#include <stdexcept>

#include "cayley/defect.cuh"
#include "cayley/elimination.cuh"
#include "cayley/product.cuh"
#include "cayley/rescue.cuh"
#include "common/cuda_launch.cuh"
#include "common/number.cuh"
#include "common/registry.h"

namespace fastlip::cayley {
namespace {

// Memory of the caller's.
class Workspace {
 public:
  Workspace(void* memory, int64_t bytes) : next_(static_cast<char*>(memory)), left_(bytes) {}

  template <class N>
  N* take(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(N));
    if (bytes > left_) throw std::invalid_argument("cayley: the workspace is too small");
    N* taken = reinterpret_cast<N*>(next_);
    next_ += bytes;
    left_ -= bytes;
    return taken;
  }

 private:
  char* next_;
  int64_t left_;
};

unsigned blocks_of(int64_t batch) { return static_cast<unsigned>(std::min(batch, kMaxBlocks)); }

// w = I + U - Uᴴ and v = V, in T, for M = [U; V] in S.
template <class S, class T, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    assemble_kernel(const Number<S, complex>* m, Number<T, complex>* w, Number<T, complex>* v, int64_t batch,
                    int64_t rows, int64_t n) {
  using N = Number<T, complex>;
  for (int64_t item = first_item<int64_t>(); item < batch * rows * n; item += item_stride<int64_t>()) {
    const int64_t member = item / (rows * n), i = item / n % rows, j = item % n;
    const N x = convert<N>(m[item]);
    if (i >= n) {
      v[(member * (rows - n) + i - n) * n + j] = x;
      continue;
    }
    const N mirrored = conjugate(convert<N>(m[(member * rows + j) * n + i]));
    w[(member * n + i) * n + j] = number<N>(T(i == j), T{0}) + (x - mirrored);
  }
}

// Q = [2B - I; -2P] in S, B too where it is wanted, and whether Q is too far from orthonormal.
template <class S, class T, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    finish_kernel(const Number<T, complex>* b, const Number<T, complex>* p, Number<T, complex>* vectors,
                  Number<S, complex>* q, Number<S, complex>* inverse, uint8_t* failed, int64_t batch, int64_t rows,
                  int64_t n) {
  using N = Number<S, complex>;
  using M = Number<T, complex>;
  const int64_t extra = rows - n;
  for (int64_t member = blockIdx.x; member < batch; member += gridDim.x) {
    const M *above = b + member * n * n, *below = extra > 0 ? p + member * extra * n : above;
    const double found = defect<T, complex>(view<T, complex>(above, n), view<T, complex>(below, n), n, extra,
                                            vectors + member * (3 * n + extra));
    if (threadIdx.x == 0) failed[member] = !(found <= kAllowed<S>);
    for (int64_t item = threadIdx.x; item < rows * n; item += kThreadsPerBlock) {
      const int64_t i = item / n, j = item % n;
      q[member * rows * n + item] =
          convert<N>(i < n ? T{2} * above[item] - number<M>(T(i == j), T{0}) : T{-2} * below[item - n * n]);
      if (inverse != nullptr && i < n) inverse[member * n * n + item] = convert<N>(above[item]);
    }
  }
}

// u = scale (X - Xᴴ), into the first n rows of matrices with `rows` rows.
template <class T, bool complex>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    skew_kernel(const Number<T, complex>* x, Number<T, complex>* u, T scale, int64_t batch, int64_t rows, int64_t n) {
  for (int64_t item = first_item<int64_t>(); item < batch * n * n; item += item_stride<int64_t>()) {
    const int64_t member = item / (n * n), i = item / n % n, j = item % n;
    u[(member * rows + i) * n + j] = scale * (x[item] - conjugate(x[(member * n + j) * n + i]));
  }
}

// The launches for a batch of matrices in T.
template <class T, bool complex>
struct Batch {
  using N = Number<T, complex>;
  int64_t batch, largest;
  void* stream;

  // c = scale a b + kept d
  void product(Matrices<N> c, Factor<N> a, Factor<N> b, int64_t rows, int64_t columns, int64_t length, T scale,
               T kept, Matrices<const N> d) const {
    multiply<T, complex>({a, b, d, c, batch, rows, columns, length, scale, kept}, stream);
  }

  // In place. spare: n² / 2 numbers for each member. With S = D - C A⁻¹ B the inverse of [A B; C D] is
  // [A⁻¹ + A⁻¹B S⁻¹ C A⁻¹, -A⁻¹B S⁻¹; -S⁻¹ C A⁻¹, S⁻¹].
  void invert(Matrices<N> whole, int64_t n, Matrices<N> spare) const {
    if (n <= largest) {
      const int64_t bytes = OnChip<T, complex>::numbers(n) * static_cast<int64_t>(sizeof(T));
      launch_with_shared(invert_kernel<T, complex>, blocks_of(batch), bytes, stream, whole, batch, n);
      return;
    }
    const int64_t first = (n / 2 + 3) / 4 * 4, second = n - first;
    const Matrices<N> a = whole, b = whole.part(0, first), c = whole.part(first, 0), d = whole.part(first, first);
    const Matrices<N> right = {spare.data, second, spare.member};
    const Matrices<N> left = {spare.data + first * second, first, spare.member};
    invert(a, first, spare);
    product(right, {a}, {b}, first, second, first, T{1}, T{0}, right);
    product(d, {c}, {right}, second, second, first, T{-1}, T{1}, d);
    invert(d, second, left);
    product(b, {right}, {d}, first, second, second, T{-1}, T{0}, b);
    product(left, {c}, {a}, second, first, first, T{1}, T{0}, left);
    product(c, {d}, {left}, second, first, second, T{-1}, T{0}, c);
    product(a, {b}, {left}, first, first, second, T{-1}, T{1}, a);
  }
};

template <class T, bool complex>
void on_chip(const Number<T, complex>* m, Number<T, complex>* q, uint8_t* failed, int64_t batch, int64_t n,
             void* stream) {
  const int64_t bytes = OnChip<T, complex>::numbers(n) * static_cast<int64_t>(sizeof(T));
  launch_with_shared(transform_kernel<T, complex>, blocks_of(batch), bytes, stream, m, q, failed, batch, n);
}

// Matrices in S are transformed in T.
template <class S, class T, bool complex>
void in_memory(const Number<S, complex>* m, Number<S, complex>* q, Number<S, complex>* inverse, uint8_t* failed,
               Workspace& workspace, int64_t batch, int64_t rows, int64_t n, int64_t largest, void* stream) {
  using N = Number<T, complex>;
  const int64_t extra = rows - n;
  N* w = workspace.take<N>(batch * n * n);
  N* spare = workspace.take<N>(batch * (n * n / 2));
  N* v = workspace.take<N>(batch * extra * n);
  N* p = workspace.take<N>(batch * extra * n);
  N* vectors = workspace.take<N>(batch * (3 * n + extra));
  const Matrices<N> inverted = {w, n, n * n}, below = {v, n, extra * n}, product = {p, n, extra * n};
  const Batch<T, complex> run = {batch, largest, stream};
  launch(assemble_kernel<S, T, complex>, blocks_for(batch * rows * n), stream, m, w, v, batch, rows, n);
  if (extra > 0) run.product(inverted, {below, true}, {below}, n, n, extra, T{1}, T{1}, inverted);
  run.invert(inverted, n, {spare, n, n * n / 2});
  if (extra > 0) run.product(product, {below}, {inverted}, extra, n, n, T{1}, T{0}, product);
  launch(finish_kernel<S, T, complex>, blocks_of(batch), stream, static_cast<const N*>(w), static_cast<const N*>(p),
         vectors, q, inverse, failed, batch, rows, n);
}

// m and q are (batch, rows, n) with rows >= n, inverse (batch, n, n) where rows > n, else null. Blocks invert up to
// largest rows on chip; failed has a byte for each matrix, and slots of them at a time can be rescued.
template <class S, bool complex>
void forward(const void* m, void* q, void* inverse, void* failed, void* memory, int64_t bytes, int64_t batch,
             int64_t rows, int64_t n, int64_t largest, int64_t slots, void* stream) {
  using N = Number<S, complex>;
  using Wide = Number<double, complex>;
  if (batch == 0) return;
  Workspace workspace(memory, bytes);
  const N* source = static_cast<const N*>(m);
  N *target = static_cast<N*>(q), *b = static_cast<N*>(inverse);
  uint8_t* marks = static_cast<uint8_t*>(failed);
  Wide* wide = workspace.take<Wide>(slots * (2 * n + rows) * n);
  if (rows > n) {
    in_memory<S, double, complex>(source, target, b, marks, workspace, batch, rows, n, largest, stream);
  } else if (n > largest) {
    in_memory<S, S, complex>(source, target, b, marks, workspace, batch, rows, n, largest, stream);
  } else {
    on_chip<S, complex>(source, target, marks, batch, n, stream);
  }
  int64_t* orders = workspace.take<int64_t>(slots * n);
  const Rescue<S, complex> rescue = {source, target, b, marks, wide, orders, batch, rows, n, slots};
  launch(rescue_kernel<S, complex>, blocks_of(slots), stream, rescue);
}

// gradient and m_gradient are (batch, rows, n). Square matrices are given by Q alone, tall ones by M and B.
template <class T, bool complex>
void backward(const void* gradient, const void* q, const void* m, const void* inverse, void* m_gradient, void* memory,
              int64_t bytes, int64_t batch, int64_t rows, int64_t n, void* stream) {
  using N = Number<T, complex>;
  if (batch == 0) return;
  Workspace workspace(memory, bytes);
  const int64_t extra = rows - n, member = rows * n;
  const auto matrices = [&](const void* data) { return Matrices<const N>{static_cast<const N*>(data), n, member}; };
  const Matrices<N> x = {workspace.take<N>(batch * n * n), n, n * n}, y = {workspace.take<N>(batch * n * n), n, n * n};
  const Matrices<N> result = {static_cast<N*>(m_gradient), n, member};
  const Matrices<const N> upper = matrices(gradient);
  const Batch<T, complex> run = {batch, n, stream};
  T scale = -2;
  if (extra == 0) {  // 4 Bᴴ Q̄ Bᴴ = QᴴY + Y with Y = Q̄Qᴴ + Q̄, as B = (Q + I) / 2
    scale = T{-0.5};
    run.product(y, {upper}, {matrices(q), true}, n, n, n, T{1}, T{1}, upper);
    run.product(x, {matrices(q), true}, {y}, n, n, n, T{1}, T{1}, y);
  } else {  // X = Bᴴ(Q̄₁ - VᴴQ̄₂)Bᴴ and V̄ / -2 = Q̄₂Bᴴ + V(X + Xᴴ)
    const auto row = [&](const void* data) { return matrices(static_cast<const N*>(data) + n * n); };
    const Matrices<const N> b = {static_cast<const N*>(inverse), n, n * n}, v = row(m), lower = row(gradient);
    const Matrices<N> v_gradient = result.part(n, 0);
    run.product(x, {v, true}, {lower}, n, n, extra, T{-1}, T{1}, upper);
    run.product(y, {x}, {b, true}, n, n, n, T{1}, T{0}, y);
    run.product(x, {b, true}, {y}, n, n, n, T{1}, T{0}, x);
    run.product(v_gradient, {lower}, {b, true}, extra, n, n, T{-2}, T{0}, v_gradient);
    run.product(v_gradient, {v}, {x}, extra, n, n, T{-2}, T{1}, v_gradient);
    run.product(v_gradient, {v}, {x, true}, extra, n, n, T{-2}, T{1}, v_gradient);
  }
  launch(skew_kernel<T, complex>, blocks_for(batch * n * n), stream, static_cast<const N*>(x.data), result.data,
         scale, batch, rows, n);
}

}  // namespace
}  // namespace fastlip::cayley

namespace fastlip {

FASTLIP_KERNEL(cayley_workspace_forward_float32, cayley::forward<float, false>);
FASTLIP_KERNEL(cayley_workspace_forward_float64, cayley::forward<double, false>);
FASTLIP_KERNEL(cayley_workspace_forward_complex64, cayley::forward<float, true>);
FASTLIP_KERNEL(cayley_workspace_forward_complex128, cayley::forward<double, true>);
FASTLIP_KERNEL(cayley_workspace_backward_float32, cayley::backward<float, false>);
FASTLIP_KERNEL(cayley_workspace_backward_float64, cayley::backward<double, false>);
FASTLIP_KERNEL(cayley_workspace_backward_complex64, cayley::backward<float, true>);
FASTLIP_KERNEL(cayley_workspace_backward_complex128, cayley::backward<double, true>);

}  // namespace fastlip

// block_conv: a kernel of matrices times a chain of factors P + (I - P) z, forward and backward, in panels throughout.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "block_conv/factor.h"
#include "block_conv/layout.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "common/scratch.h"

namespace fastlip::block_conv {
namespace {

// A chain of one batch item. axes[i]: whether the taps of factor i lie along the width.
template <class T>
struct Chain {
  int64_t factors;
  const int64_t* axes;
  int64_t rows;
  int64_t columns;
  std::vector<Taps> taps;  // of the kernel before each factor, and of the result

  Chain(int64_t factors, const int64_t* axes, const Taps& first, int64_t rows, int64_t columns)
      : factors(factors), axes(axes), rows(rows), columns(columns), taps{first} {
    for (int64_t i = 0; i < factors; ++i) taps.push_back(taps[i].longer(axes[i]));
  }

  int64_t square() const { return columns * columns; }
  bool large() const { return square() * columns >= kWorthThreads; }
  int64_t matrix_size() const { return View<T>::panels_size(1, columns, columns); }
  int64_t kernel_size(int64_t i) const { return View<T>::panels_size(taps[i].count(), rows, columns); }
  View<T> panels(T* data, int64_t i) const { return View<T>::panels(data, taps[i].count(), rows, columns); }
  View<T> plain(const T* data) const { return View<T>::plain(const_cast<T*>(data), rows, columns); }

  // The kernels before each of the first `count` factors, in panels one after another.
  std::vector<View<T>> partial_kernels(const T* kernel, const T* projectors, int64_t count) const {
    int64_t size = matrix_size();
    for (int64_t i = 0; i < count; ++i) size += kernel_size(i);
    T* memory = scratch<T, struct Kernels>(size);
    const View<T> P = View<T>::panels(memory, 1, columns, columns);
    std::vector<View<T>> kernels;
    T* next = memory + matrix_size();
    for (int64_t i = 0; i < count; next += kernel_size(i), ++i) {
      kernels.push_back(panels(next, i));
      if (i == 0) {
        for (int64_t t = 0; t < taps[0].count(); ++t) pack(plain(kernel), kernels[0], t, large());
      } else {
        extend(projectors, i - 1, kernels[i - 1], P, kernels[i]);
      }
    }
    return kernels;
  }

  // The kernel behind factor i. P is room for its projector.
  void extend(const T* projectors, int64_t i, const View<T>& kernel, const View<T>& P, const View<T>& longer) const {
    pack(View<T>::plain(const_cast<T*>(projectors) + i * square(), columns, columns), P, 0, large());
    lengthen(kernel, taps[i], axes[i], P, columns, longer);
  }

  void forward(const T* kernel, const T* projectors, T* result) const {
    const View<T> last = partial_kernels(kernel, projectors, factors).back();
    const View<T> P = View<T>::panels(scratch<T, struct Matrix>(matrix_size()), 1, columns, columns);
    extend(projectors, factors - 1, last, P, plain(result));
  }

  void backward(const T* gradient, const T* kernel, const T* projectors, T* for_kernel, T* for_projectors) const {
    const std::vector<View<T>> kernels = partial_kernels(kernel, projectors, factors);
    const int64_t most = kernel_size(factors - 1);
    T* memory = scratch<T, struct Gradients>(matrix_size() + 3 * most);
    const View<T> transposed = View<T>::panels(memory, 1, columns, columns);
    T* differences = memory + matrix_size();
    View<T> G = plain(gradient);
    for (int64_t i = factors - 1; i >= 0; --i) {
      pack_transposed(projectors + i * square(), columns, transposed, large());
      const View<T> shorter = i == 0 ? plain(for_kernel) : panels(differences + (1 + i % 2) * most, i);
      const View<T> for_P = View<T>::plain(for_projectors + i * square(), columns, columns);
      Shortening<T>{G, kernels[i], transposed, panels(differences, i), shorter, for_P, taps[i], axes[i], columns}.run();
      G = shorter;
    }
  }
};

// Calls run(chain, b) for each item of a batch; items are small where they are many, and one thread has each.
template <class T, class Run>
void for_each_item(const Chain<T>& chain, int64_t batch, const Run& run) {
  parallel_jobs(batch, batch > 1 && batch * chain.kernel_size(0) * chain.columns >= kWorthThreads, run);
}

// kernel (batch, height, width, rows, columns), projectors (batch, factors, columns, columns), contiguous; so is the
// result, a tap longer along axes[i] (0 height, 1 width) for each factor.
template <class T>
void forward(const T* kernel, const T* projectors, T* result, const int64_t* axes, int64_t factors, int64_t batch,
             int64_t height, int64_t width, int64_t rows, int64_t columns) {
  const Chain<T> chain(factors, axes, {height, width}, rows, columns);
  const int64_t size = rows * columns, first = chain.taps[0].count() * size, last = chain.taps[factors].count() * size;
  for_each_item(chain, batch, [&](int64_t b) {
    chain.forward(kernel + b * first, projectors + b * factors * chain.square(), result + b * last);
  });
}

// The gradients of both, shaped as they are, from that of the result.
template <class T>
void backward(const T* gradient, const T* kernel, const T* projectors, T* for_kernel, T* for_projectors,
              const int64_t* axes, int64_t factors, int64_t batch, int64_t height, int64_t width, int64_t rows,
              int64_t columns) {
  const Chain<T> chain(factors, axes, {height, width}, rows, columns);
  const int64_t size = rows * columns, first = chain.taps[0].count() * size, last = chain.taps[factors].count() * size;
  for_each_item(chain, batch, [&](int64_t b) {
    const int64_t P = b * factors * chain.square();
    chain.backward(gradient + b * last, kernel + b * first, projectors + P, for_kernel + b * first, for_projectors + P);
  });
}

FASTLIP_KERNEL(block_conv_forward_float32, forward<float>);
FASTLIP_KERNEL(block_conv_forward_float64, forward<double>);
FASTLIP_KERNEL(block_conv_backward_float32, backward<float>);
FASTLIP_KERNEL(block_conv_backward_float64, backward<double>);

}  // namespace
}  // namespace fastlip::block_conv

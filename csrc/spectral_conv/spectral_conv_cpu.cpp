// y = IDFT(Q_k DFT(x)_k) + bias at an FFT size at least as large as the images, on the CPU.
//
// A pass takes some images through three stages: transforms to a spectrum that is frequency-major, matrix products at
// each frequency in place, transforms back. The spectrum of a pass stays in cache where it can.
// Results do not depend on the number of threads: each job owns what it writes, and sums have a fixed order.

#include <algorithm>
#include <cstdint>

#include "common/pages.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "common/scratch.h"
#include "spectral_conv/finish.h"
#include "spectral_conv/geometry.h"
#include "spectral_conv/image.h"
#include "spectral_conv/mix.h"
#include "spectral_conv/transform.h"

namespace fastlip::spectral_conv {
namespace {

constexpr int64_t kPassBytes = 32 << 20;
constexpr int64_t kSerialElements = 8192;
constexpr int64_t kFewFrequencies = 32;
constexpr int64_t kImagesPerJob = 256;
constexpr int64_t kFrequenciesPerJob = 8;
constexpr int64_t kChunksPerJob = 8;

template <class T>
class Convolution {
 public:
  Convolution(Mixing<T> mixing, int64_t images, Channels<T> inputs, Channels<T> outputs, Transform<T> transform)
      : images_(images), inputs_(inputs), outputs_(outputs), transform_(std::move(transform)), mixing_(mixing),
        chunks_(std::max(inputs.chunks, outputs.chunks)) {
    const int64_t bytes = Spectrum<T>::elements(frequencies(), 1, chunks_) * static_cast<int64_t>(sizeof(T));
    // Few images per pass would read the matrices too often.
    const int64_t least = std::max(inputs.per_group, outputs.per_group) / 4;
    const int64_t most = std::max<int64_t>({kPassBytes / bytes, least, 8}), passes = (images + most - 1) / most;
    pass_ = passes <= 1 ? images : (images + 8 * passes - 1) / (8 * passes) * 8;
    parallel_ = images * chunks_ * kLaneCount<T> * transform_.area() > kSerialElements;
  }

  // y = finish(factor Q x + bias).
  void forward(const Images<const T>& x, const T* bias, const Images<T>& y, T factor = 1,
               const Finish<T>& finish = {}) const {
    for (int64_t begin = 0; begin < images_; begin += pass_) {
      const Spectrum<T> spectrum = this->spectrum<struct ForwardSpectrum>(begin);
      analyse(x, inputs_, begin, spectrum, {});
      mix(spectrum, false);
      synthesise(spectrum, outputs_, begin, factor, bias, y, finish);
    }
  }

  // Any of the gradients for x, Q and bias may be null; so may the bits of a MaxMin after the convolution. With
  // `of_cayley` Q is the Cayley transform of a square M, whose gradient is P - Pᴴ, and P = -(Ȳ + X̄)(X + QX)ᴴ / 2 with
  // X̄ = QᴴȲ takes the place of Q's gradient Ȳ Xᴴ (README.md of fastlip/kernels/cayley_linear).
  void backward(const Images<const T>& gradient, const Images<const T>& x, const Images<T>& x_gradient,
                T* matrix_gradient, T* bias_gradient, const PairBits<const uint8_t>& bits, bool of_cayley) const {
    const bool twice = of_cayley && matrix_gradient != nullptr;
    for (int64_t begin = 0; begin < images_; begin += pass_) {
      const Spectrum<T> spectrum = this->spectrum<struct ForwardSpectrum>(begin);
      const Spectrum<T> sums = twice ? this->spectrum<struct SumSpectrum>(begin) : spectrum;
      analyse(gradient, outputs_, begin, spectrum, bits);
      if (bias_gradient != nullptr) sum_images(spectrum, begin > 0, bias_gradient);
      if (twice) mix(spectrum, true, sums.data);
      if (matrix_gradient != nullptr) {
        const Spectrum<T> x_spectrum = this->spectrum<struct InputSpectrum>(begin);
        analyse(x, inputs_, begin, x_spectrum, {});
        if (twice) mix(x_spectrum, false, x_spectrum.data);
        differentiate(x_spectrum, sums, begin > 0, twice ? T{-0.5} : T{1}, matrix_gradient);
      }
      if (x_gradient.data == nullptr) continue;
      if (!twice) mix(spectrum, true);
      synthesise(spectrum, inputs_, begin, 1, nullptr, x_gradient, {});
    }
  }

 private:
  const Frequencies& frequencies() const { return transform_.frequencies; }

  template <class Tag>
  Spectrum<T> spectrum(int64_t begin) const {
    const int64_t size = Spectrum<T>::elements(frequencies(), pass_, chunks_);
    T* data = scratch<T, Tag>(size);
    prefer_large_pages(data, size);
    return {data, frequencies(), std::min(pass_, images_ - begin), chunks_};
  }

  // Of images whose pairs have been exchanged, where there are bits of them.
  void analyse(const Images<const T>& images, const Channels<T>& channels, int64_t begin, const Spectrum<T>& spectrum,
               const PairBits<const uint8_t>& bits) const {
    parallel_jobs(spectrum.images, parallel_, [&](int64_t slot) {
      for (int64_t chunk = 0; chunk < channels.chunks; ++chunk) {
        const T* image = images.at(begin + slot, channels.first(chunk));
        transform_.forward(images, image, channels.width(chunk), spectrum, slot, chunk,
                           [&](const Band<T>& band, int64_t y, int64_t rows) {
                             if (bits.data != nullptr) bits.undo(band, begin + slot, chunk, y, rows);
                           });
      }
    });
  }

  void synthesise(const Spectrum<T>& spectrum, const Channels<T>& channels, int64_t begin, T factor, const T* bias,
                  const Images<T>& images, const Finish<T>& finish) const {
    const T scale = factor / static_cast<T>(transform_.area());
    parallel_jobs(spectrum.images, parallel_, [&](int64_t slot) {
      for (int64_t chunk = 0; chunk < channels.chunks; ++chunk) {
        const int64_t first = channels.first(chunk);
        const int64_t width = channels.width(chunk);
        transform_.inverse(spectrum, slot, chunk, scale, bias == nullptr ? nullptr : bias + first, width, images,
                           images.at(begin + slot, first), [&](const Band<T>& band, int64_t y, int64_t rows) {
                             if (finish.is_identity()) return;
                             finish.apply(band, transform_.second_band(), begin + slot, chunk, first, width, y, rows);
                           });
      }
    });
  }

  void mix(const Spectrum<T>& spectrum, bool adjoint, T* sums = nullptr) const {
    const int64_t count = frequencies().count;
    const int64_t step = count < kFewFrequencies ? kImagesPerJob : spectrum.images;
    const int64_t blocks = (spectrum.images + step - 1) / step;
    const int64_t run = count < kFewFrequencies ? 1 : kFrequenciesPerJob;
    parallel_jobs((count + run - 1) / run * blocks, parallel_, [&](int64_t job) {
      const int64_t begin = job % blocks * step, first = job / blocks * run, last = std::min(first + run, count);
      for (int64_t k = first; k < last; ++k) {
        const int64_t end = std::min(begin + step, spectrum.images);
        mixing_.apply(spectrum, k, k + 1 < last ? k + 1 : -1, begin, end, adjoint, sums);
      }
    });
  }

  void differentiate(const Spectrum<T>& x, const Spectrum<T>& gradient, bool add, T factor, T* target) const {
    const T scale = factor / static_cast<T>(transform_.area());
    const int64_t step = frequencies().count < kFewFrequencies ? kChunksPerJob : inputs_.chunks;
    const int64_t parts = (inputs_.chunks + step - 1) / step;
    parallel_jobs(frequencies().count * parts, parallel_, [&](int64_t job) {
      const int64_t frequency = job / parts, begin = job % parts * step, end = std::min(begin + step, inputs_.chunks);
      mixing_.gradient(x, gradient, frequency, begin, end, x.is_real(frequency) ? scale : 2 * scale, add, target);
    });
  }

  // The frequency 0 is the sum over pixels.
  void sum_images(const Spectrum<T>& spectrum, bool add, T* target) const {
    for (int64_t chunk = 0; chunk < outputs_.chunks; ++chunk) {
      Lanes<T> sum = {};
      for (int64_t slot = 0; slot < spectrum.images; ++slot) sum += load_lanes(spectrum.at(0, slot, chunk));
      T* place = target + outputs_.first(chunk);
      const int64_t width = outputs_.width(chunk);
      store_first<T>(place, add ? load_first(place, width) + sum : sum, width);
    }
  }

  int64_t images_;
  Channels<T> inputs_, outputs_;
  Transform<T> transform_;
  Mixing<T> mixing_;
  int64_t chunks_;
  int64_t pass_;
  bool parallel_;
};

// x is (n, cin, h, w), y (n, cout, h, w), matrices (F, cout, cin / groups, 2), bias (cout) or null. Where `bits` is not
// null, MaxMin follows and leaves its bits there; of one group.
template <class T>
void forward(const T* x, const T* matrices, const T* bias, T* y, uint8_t* bits, int64_t n, int64_t groups, int64_t cin, int64_t cout,
             int64_t h, int64_t w, int64_t fft_h, int64_t fft_w, int64_t x_channels_last, int64_t y_channels_last) {
  const Channels<T> inputs{groups, cin / groups}, outputs{groups, cout / groups};
  const Convolution<T> convolution({matrices, nullptr, inputs, outputs}, n, inputs, outputs, {h, w, fft_h, fft_w});
  prefer_large_pages(y, n * cout * h * w);
  const bool last = y_channels_last != 0;
  const Activation activation = bits == nullptr ? Activation::kNone : Activation::kMaxMin;
  convolution.forward({x, cin, h, w, x_channels_last != 0}, bias, {y, cout, h, w, last}, 1,
                      {{nullptr, cout, h, w, last}, activation, {bits, h, w, outputs.chunks}});
}

// finish(factor Q x + b) with the panels of a fixed Q and one group; residual lies in memory like y, and may be null.
template <class T>
void apply_fixed(const T* x, const T* panels, const T* bias, const T* residual, T* y, double factor,
                 int64_t activation, int64_t n, int64_t cin, int64_t cout, int64_t h, int64_t w, int64_t fft_h, int64_t fft_w,
                 int64_t x_channels_last, int64_t y_channels_last) {
  const Channels<T> inputs{1, cin}, outputs{1, cout};
  const Convolution<T> convolution({nullptr, panels, inputs, outputs}, n, inputs, outputs, {h, w, fft_h, fft_w});
  const bool last = y_channels_last != 0;
  prefer_large_pages(y, n * cout * h * w);
  convolution.forward({x, cin, h, w, x_channels_last != 0}, bias, {y, cout, h, w, last},
                      static_cast<T>(factor), {{residual, cout, h, w, last}, static_cast<Activation>(activation)});
}

template <class T>
void lanes(int64_t* count) {
  *count = kLaneCount<T>;
}

// The gradients have the shapes of what they belong to, and each may be null; x_gradient lies in memory like x. `bits`: what
// forward left, or null. `of_cayley`: matrix_gradient gets what Convolution::backward says.
template <class T>
void backward(const T* gradient, const T* x, const T* matrices, const uint8_t* bits, T* x_gradient,
              T* matrix_gradient, T* bias_gradient, int64_t n, int64_t groups, int64_t cin, int64_t cout, int64_t h, int64_t w, int64_t fft_h,
              int64_t fft_w, int64_t gradient_channels_last, int64_t channels_last, int64_t of_cayley) {
  const Channels<T> inputs{groups, cin / groups}, outputs{groups, cout / groups};
  const Convolution<T> convolution({matrices, nullptr, inputs, outputs}, n, inputs, outputs, {h, w, fft_h, fft_w});
  const bool last = channels_last != 0;
  if (x_gradient != nullptr) prefer_large_pages(x_gradient, n * cin * h * w);
  convolution.backward({gradient, cout, h, w, gradient_channels_last != 0}, {x, cin, h, w, last},
                       {x_gradient, cin, h, w, last}, matrix_gradient, bias_gradient,
                       {bits, h, w, outputs.chunks}, of_cayley != 0);
}

}  // namespace
}  // namespace fastlip::spectral_conv

namespace fastlip {

FASTLIP_KERNEL(spectral_conv_forward_float32, spectral_conv::forward<float>);
FASTLIP_KERNEL(spectral_conv_forward_float64, spectral_conv::forward<double>);
FASTLIP_KERNEL(spectral_conv_fixed_float32, spectral_conv::apply_fixed<float>);
FASTLIP_KERNEL(spectral_conv_fixed_float64, spectral_conv::apply_fixed<double>);
FASTLIP_KERNEL(spectral_conv_lanes_float32, spectral_conv::lanes<float>);
FASTLIP_KERNEL(spectral_conv_lanes_float64, spectral_conv::lanes<double>);
FASTLIP_KERNEL(spectral_conv_backward_float32, spectral_conv::backward<float>);
FASTLIP_KERNEL(spectral_conv_backward_float64, spectral_conv::backward<double>);

}  // namespace fastlip

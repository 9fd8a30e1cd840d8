// A CUDA device that computes nothing: what autograd's engine asks of a device when fake tensors
// (torch._subclasses.FakeTensorMode) say that they are on one. tools/gpu/fake_cuda.py loads it before torch, so that
// torch's own libraries find the two functions at the end here and not in libtorch_cpu. A torch built for CUDA comes
// with it, as libtorch needs it: the guard here is registered after its own, and takes its place.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <optional>

namespace {

constexpr auto kCuda = c10::DeviceType::CUDA;

c10::Device first() { return c10::Device(kCuda, 0); }
c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, first()); }

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return first(); }
  c10::Device getDevice() const override { return first(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
};

struct Hooks final : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  // Convolutions are cuDNN's: images in float32 that are channels-last stay so.
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  long versionCuDNN() const override { return 90000; }
  long versionRuntimeCuDNN() const override { return 90000; }
};

const c10::impl::DeviceGuardImplRegistrar registrar(kCuda, new Guard());

}  // namespace

namespace at::accelerator {
__attribute__((visibility("default"))) std::optional<c10::DeviceType> getAccelerator(bool) { return kCuda; }
}  // namespace at::accelerator

namespace at::detail {
__attribute__((visibility("default"))) const CUDAHooksInterface& getCUDAHooks() {
  static const Hooks hooks;
  return hooks;
}
}  // namespace at::detail

// Calls registered kernels by name, from ctypes or from the command line:
//   driver KERNEL ARGUMENT...     where p:BYTES is a buffer of that size, f:BYTES one of floats between -1 and 1 that
//                                 kernels can iterate on, i:NUMBER an integer, d:NUMBER a double.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "common/registry.h"

namespace {

const fastlip::Kernel* find(const char* name) {
  for (const fastlip::Kernel& kernel : fastlip::registry()) {
    if (std::strcmp(kernel.name, name) == 0) return &kernel;
  }
  return nullptr;
}

void fill_with_floats(std::vector<uint8_t>& bytes) {
  for (size_t i = 0; i + sizeof(float) <= bytes.size(); i += sizeof(float)) {
    const float value = 2.0f * static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 1.0f;
    std::memcpy(bytes.data() + i, &value, sizeof value);
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* fastlip_kernel_name(size_t index) {
  return index < fastlip::registry().size() ? fastlip::registry()[index].name : nullptr;
}

extern "C" __attribute__((visibility("default"))) const char* fastlip_kernel_kinds(const char* name) {
  return find(name)->kinds;
}

extern "C" __attribute__((visibility("default"))) void fastlip_call(const char* name,
                                                                     const fastlip::Argument* arguments) {
  find(name)->call(arguments);
}

int main(int count, char** values) {
  const fastlip::Kernel* kernel = count > 1 ? find(values[1]) : nullptr;
  if (kernel == nullptr || std::strlen(kernel->kinds) != static_cast<size_t>(count - 2)) {
    std::fprintf(stderr, "driver: no such kernel, or it takes other arguments\n");
    return 2;
  }
  std::vector<std::vector<uint8_t>> buffers;
  std::vector<fastlip::Argument> arguments;
  for (int i = 2; i < count; ++i) {
    fastlip::Argument argument;
    const char* text = values[i] + 2;
    if (values[i][0] == 'p' || values[i][0] == 'f') {
      buffers.emplace_back(std::strtoull(text, nullptr, 10));
      for (uint8_t& byte : buffers.back()) byte = static_cast<uint8_t>(std::rand() >> 8);
      if (values[i][0] == 'f') fill_with_floats(buffers.back());
      argument.pointer = buffers.back().data();
    } else if (values[i][0] == 'i') {
      argument.integer = std::strtoll(text, nullptr, 10);
    } else {
      argument.real = std::strtod(text, nullptr);
    }
    arguments.push_back(argument);
  }
  kernel->call(arguments.data());
  std::printf("ran %s\n", kernel->name);
}

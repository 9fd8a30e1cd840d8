// Replays recorded calls of kernels: reads them from one file, runs them, writes the buffers to another file.
// tools/check_aarch64.py writes the first file, compares the second one, and says what both hold.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "common/registry.h"

namespace {

constexpr int64_t kAlignment = 4096;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "replay: %s\n", message.c_str());
  std::exit(1);
}

void read_bytes(std::FILE* file, void* target, size_t size) {
  if (size > 0 && std::fread(target, 1, size, file) != size) fail("the file of calls is too short");
}

int64_t read_integer(std::FILE* file) {
  int64_t value;
  read_bytes(file, &value, sizeof(value));
  return value;
}

std::string read_text(std::FILE* file) {
  std::string text(static_cast<size_t>(read_integer(file)), '\0');
  read_bytes(file, text.data(), text.size());
  return text;
}

// Memory with the same distance from a boundary as the recorded buffer had.
struct Buffer {
  std::vector<char> memory;
  char* data;
  size_t size;
};

Buffer read_buffer(std::FILE* file) {
  Buffer buffer;
  buffer.size = static_cast<size_t>(read_integer(file));
  const int64_t offset = read_integer(file);
  buffer.memory.resize(buffer.size + 2 * kAlignment);
  const auto address = reinterpret_cast<uintptr_t>(buffer.memory.data());
  buffer.data = buffer.memory.data() + (kAlignment - address % kAlignment) + offset;
  read_bytes(file, buffer.data, buffer.size);
  return buffer;
}

const fastlip::Kernel& find(const std::string& name) {
  for (const fastlip::Kernel& kernel : fastlip::registry()) {
    if (name == kernel.name) return kernel;
  }
  fail("no kernel " + name);
}

void replay(std::FILE* file, std::FILE* results) {
  const fastlip::Kernel& kernel = find(read_text(file));
  std::vector<Buffer> buffers;
  for (int64_t count = read_integer(file); count > 0; --count) buffers.push_back(read_buffer(file));
  std::vector<fastlip::Argument> arguments(std::strlen(kernel.kinds));
  if (read_integer(file) != static_cast<int64_t>(arguments.size())) fail("wrong number of arguments");
  for (size_t i = 0; i < arguments.size(); ++i) {
    const int64_t buffer = read_integer(file);  // -1: a number or a null pointer
    read_bytes(file, &arguments[i], sizeof(fastlip::Argument));
    if (buffer >= 0) arguments[i].pointer = buffers.at(static_cast<size_t>(buffer)).data + arguments[i].integer;
  }
  kernel.call(arguments.data());
  for (const Buffer& buffer : buffers) std::fwrite(buffer.data, 1, buffer.size, results);
}

}  // namespace

int main(int count, char** names) {
  if (count == 2 && std::string(names[1]) == "--list") {
    for (const fastlip::Kernel& kernel : fastlip::registry()) std::printf("%s\n", kernel.name);
    return 0;
  }
  if (count != 3) fail("usage: replay CALLS RESULTS, or replay --list");
  std::FILE* file = std::fopen(names[1], "rb");
  std::FILE* results = std::fopen(names[2], "wb");
  if (file == nullptr || results == nullptr) fail("cannot open the files");
  for (int64_t calls = read_integer(file); calls > 0; --calls) replay(file, results);
  return std::fclose(results) == 0 ? 0 : 1;
}

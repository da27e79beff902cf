// src/cuda/driver.cpp - finds libcuda and the functions that are used of it.
#include "cuda/driver.hpp"

#include <dlfcn.h>

#include <stdexcept>

namespace exactile::cuda {
namespace {

/// What there is, or why not. Kept for the life of the process.
struct Loaded {
  Driver driver;
  std::string problem;
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string load(Driver& driver) {
  constexpr const char* kRequired = "an NVIDIA driver for CUDA 12.0 or newer (R525)";
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::string("no NVIDIA driver: ") + dlerror() + "; install " + kRequired;
  using GetProcAddress = Result (*)(const char*, void**, int, uint64_t, int*);
  const auto get = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  if (!get) return std::string("the NVIDIA driver is too old; install ") + kRequired;
  std::string missing;
  const auto find = [&](auto& function, const char* name, int version) {
    void* address = nullptr;
    int status = 0;
    constexpr uint64_t kLegacyDefaultStream = 1;
    if (get(name, &address, version, kLegacyDefaultStream, &status) != kSuccess || !address) {
      missing += std::string(missing.empty() ? "" : ", ") + name;
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
#define EXACTILE_FIND(name, version, parameters) find(driver.name, #name, version);
  EXACTILE_DRIVER_FUNCTIONS(EXACTILE_FIND)
#undef EXACTILE_FIND
  if (!missing.empty()) {
    return "the NVIDIA driver lacks " + missing + "; install " + kRequired;
  }
  try {
    EXACTILE_DRIVER_CALL(driver, cuDriverGetVersion, &driver.version);
    EXACTILE_DRIVER_CALL(driver, cuInit, 0);
    int devices = 0;
    EXACTILE_DRIVER_CALL(driver, cuDeviceGetCount, &devices);
    if (devices == 0) return "the NVIDIA driver " + version_text(driver.version) + " sees no GPU";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return {};
}

}  // namespace

const Driver& Driver::get() {
  // Never destroyed: plans may outlive every static object.
  static const Loaded& loaded = *[] {
    auto* const result = new Loaded;
    result->problem = load(result->driver);
    return result;
  }();
  if (!loaded.problem.empty()) throw std::runtime_error("exactile: cuda: " + loaded.problem);
  return loaded.driver;
}

void Driver::check(Result result, const char* call) const {
  if (result == kSuccess) return;
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  throw std::runtime_error(std::string(call) + ": " + (name ? name : "unknown error") + " (" +
                           std::to_string(result) + "): " + (text ? text : "no text"));
}

}  // namespace exactile::cuda

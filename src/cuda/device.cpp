// src/cuda/device.cpp - opens devices, loads kernels, allocates; all are kept and used again.
#include "cuda/device.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <stdexcept>

#include "jit/cache.hpp"

namespace exactile::cuda {

constexpr std::size_t kSmallestBlock = 1 << 16;

int Device::count() {
  int devices = 0;
  EXACTILE_DRIVER_CALL(Driver::get(), cuDeviceGetCount, &devices);
  return devices;
}

int Device::current() {
  const Driver& driver = Driver::get();
  Context context = nullptr;
  DeviceHandle device = 0;
  EXACTILE_DRIVER_CALL(driver, cuCtxGetCurrent, &context);
  if (context) EXACTILE_DRIVER_CALL(driver, cuCtxGetDevice, &device);
  return device;  // handles are ordinals
}

Device& Device::get(int ordinal) {
  // Never destroyed: plans may outlive every static object.
  static std::mutex& mutex = *new std::mutex;
  static auto& devices = *new std::vector<std::unique_ptr<Device>>(count());
  if (ordinal < 0 || ordinal >= static_cast<int>(devices.size())) {
    throw std::invalid_argument("exactile: expected a CUDA device below " +
                                std::to_string(devices.size()) + ", got " +
                                std::to_string(ordinal));
  }
  const std::scoped_lock lock(mutex);
  auto& device = devices[ordinal];
  if (!device) device.reset(new Device(ordinal));
  return *device;
}

Device::Device(int ordinal) : driver_(Driver::get()), ordinal_(ordinal) {
  EXACTILE_DRIVER_CALL(driver_, cuDeviceGet, &handle_, ordinal);
  char name[256] = {};
  EXACTILE_DRIVER_CALL(driver_, cuDeviceGetName, name, sizeof name - 1, handle_);
  name_ = name;
  EXACTILE_DRIVER_CALL(driver_, cuDeviceTotalMem, &memory_bytes_, handle_);
  const auto attribute = [&](int& value, int which) {
    EXACTILE_DRIVER_CALL(driver_, cuDeviceGetAttribute, &value, which, handle_);
  };
  attribute(major_, kAttributeComputeCapabilityMajor);
  attribute(minor_, kAttributeComputeCapabilityMinor);
  attribute(multiprocessors_, kAttributeMultiprocessorCount);
  attribute(max_shared_bytes_, kAttributeMaxSharedMemoryPerBlockOptin);
}

/// The context is made when it is first needed: `info` asks about devices without one.
void Device::open() {
  if (context_) return;
  const std::scoped_lock lock(mutex_);
  if (context_) return;
  Context context = nullptr;
  EXACTILE_DRIVER_CALL(driver_, cuDevicePrimaryCtxRetain, &context, handle_);
  EXACTILE_DRIVER_CALL(driver_, cuCtxPushCurrent, context);
  const Result result = driver_.cuStreamCreate(&side_stream_, kStreamNonBlocking);
  Context popped = nullptr;
  driver_.cuCtxPopCurrent(&popped);
  driver_.check(result, "cuStreamCreate");
  context_ = context;
}

Family Device::family(bool any_array) const {
  const int capability = major_ * 10 + minor_;
  const auto best = best_family(capability, any_array);
  if (!best) {
    throw std::runtime_error("exactile: cuda: expected a GPU of compute capability 8.0 or newer, " +
                             std::string("got ") + name_ + " of " + std::to_string(major_) + "." +
                             std::to_string(minor_));
  }
  const auto wanted = family_from_environment();
  if (!wanted || (any_array && traits_of(*wanted).needs_tma)) return *best;
  const FamilyTraits traits = traits_of(*wanted);
  if (!traits.runs_on(capability)) {
    throw std::invalid_argument(
        std::string("EXACTILE_CUDA_FAMILY: ") + name_of(*wanted, kFamilyNames) +
        " needs a GPU of compute capability " + std::to_string(traits.capability / 10) + "." +
        std::to_string(traits.capability % 10) + ", got " + name_);
  }
  return *wanted;
}

std::string Device::architecture(Family family) const {
  const FamilyTraits traits = traits_of(family);
  if (major_ == traits.capability / 10) return traits.architecture;  // runs on 8.6 and 8.9 too
  return "sm_" + std::to_string(major_ * 10 + minor_);
}

const LoadedKernel& Device::kernel(const AnySpec& spec) {
  return kernels_.get(spec, [&] {
    const RelaxedCapture relaxed;  // the first run may be captured
    const auto* const prefill = std::get_if<KernelSpec>(&spec);
    const Family of = prefill ? prefill->family : family();
    return load(make_program(spec, architecture(of)), shape_of(spec));
  });
}

LoadedKernel Device::load(const jit::Program& program, const Shape& shape) const {
  if (shape.shared_bytes > max_shared_bytes_) {
    throw std::runtime_error("exactile: cuda: expected " + std::to_string(shape.shared_bytes) +
                             " bytes of shared memory a block, " + name_ + " has " +
                             std::to_string(max_shared_bytes_));
  }
  const Kernel handle = load(program);
  EXACTILE_DRIVER_CALL(driver_, cuKernelSetAttribute, kKernelMaxDynamicSharedSizeBytes,
                       shape.shared_bytes, handle, handle_);
  return {.handle = handle, .shape = shape};
}

Kernel Device::load(const jit::Program& program) const {
  const auto is_refusal = [](Result result) {
    return result == kErrorInvalidImage || result == kErrorNoBinaryForGpu ||
           result == kErrorInvalidPtx || result == kErrorUnsupportedPtxVersion ||
           result == kErrorInvalidSource || result == kErrorNotFound;
  };
  // Refused: the wheel's cubins by a driver older than their compiler, those of the cache directory
  // where they come from another one. What is compiled here and now fits, and takes their place.
  for (const jit::Search search :
       {jit::Search::kAnywhere, jit::Search::kNotWheel, jit::Search::kCompiler}) {
    const jit::Found found = jit::find(program, search);
    const bool is_last = found.origin == jit::Origin::kCompiler;
    Library library = nullptr;
    const Result loaded = driver_.cuLibraryLoadData(&library, found.binary->image.data(), nullptr,
                                                    nullptr, 0, nullptr, nullptr, 0);
    if (is_refusal(loaded) && !is_last) continue;
    driver_.check(loaded, "cuLibraryLoadData");
    Kernel kernel = nullptr;
    const Result got =
        driver_.cuLibraryGetKernel(&kernel, library, found.binary->lowered_name.c_str());
    if (got == kSuccess) return kernel;
    driver_.cuLibraryUnload(library);
    if (!is_refusal(got) || is_last) driver_.check(got, "cuLibraryGetKernel");
  }
  throw std::logic_error("exactile: cuda: a compiled kernel was neither loaded nor refused");
}

/// Moves what nothing uses any more from released_ to idle_.
void Device::collect_idle() {
  std::erase_if(released_, [this](Released& released) {
    auto& uses = released.last_uses;
    while (!uses.empty() && driver_.cuEventQuery(uses.back()) == kSuccess) {
      events_.push_back(uses.back());
      uses.pop_back();
    }
    if (!uses.empty()) return false;
    idle_.insert(idle_.end(), released.blocks.begin(), released.blocks.end());
    return true;
  });
}

Block Device::acquire(std::size_t bytes, Pinned pinned) {
  const RelaxedCapture relaxed;
  {
    const std::scoped_lock lock(mutex_);
    collect_idle();
    // Not far larger: a small plan does not hold the memory of a large one.
    constexpr std::size_t kTooLarge = 8;
    const auto fits = std::ranges::find_if(idle_, [&](const Block& block) {
      return (block.host != nullptr) == (pinned == Pinned::kBeside) && block.bytes >= bytes &&
             block.bytes / kTooLarge <= max(bytes, kSmallestBlock);
    });
    if (fits != idle_.end()) {
      const Block block = *fits;
      idle_.erase(fits);
      return block;
    }
  }
  Block block{.bytes = std::bit_ceil(max(bytes, kSmallestBlock))};
  EXACTILE_DRIVER_CALL(driver_, cuMemAlloc, &block.device, block.bytes);
  if (pinned == Pinned::kNone) return block;
  void* host = nullptr;
  const Result result = driver_.cuMemHostAlloc(&host, block.bytes, 0);
  if (result != kSuccess) driver_.cuMemFree(block.device);
  driver_.check(result, "cuMemHostAlloc");
  block.host = static_cast<std::byte*>(host);
  return block;
}

void Device::release(std::vector<Block> blocks, std::vector<Event> last_uses) {
  const std::scoped_lock lock(mutex_);
  released_.push_back({.blocks = std::move(blocks), .last_uses = std::move(last_uses)});
}

Event Device::make_event() {
  {
    const std::scoped_lock lock(mutex_);
    if (!events_.empty()) {
      const Event event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  Event event = nullptr;
  EXACTILE_DRIVER_CALL(driver_, cuEventCreate, &event, kEventDisableTiming);
  return event;
}

LaunchStream::LaunchStream(Stream stream) : handle(stream) {
  const Driver& driver = Driver::get();
  int status = kCaptureStatusNone;
  EXACTILE_DRIVER_CALL(driver, cuStreamIsCapturing, stream, &status);
  capturing = status != kCaptureStatusNone;
  // A capturing stream gives no id; in a capture, the handle stays what it is.
  if (!capturing) EXACTILE_DRIVER_CALL(driver, cuStreamGetId, stream, &id);
}

ContextScope::ContextScope(Device& device) {
  device.open();
  const Driver& driver = Driver::get();
  Context current = nullptr;
  EXACTILE_DRIVER_CALL(driver, cuCtxGetCurrent, &current);
  if (current == device.context()) return;
  EXACTILE_DRIVER_CALL(driver, cuCtxPushCurrent, device.context());
  pushed_ = true;
}

ContextScope::~ContextScope() {
  Context popped = nullptr;
  if (pushed_) Driver::get().cuCtxPopCurrent(&popped);
}

RelaxedCapture::RelaxedCapture() {
  EXACTILE_DRIVER_CALL(Driver::get(), cuThreadExchangeStreamCaptureMode, &mode_);
}

RelaxedCapture::~RelaxedCapture() { Driver::get().cuThreadExchangeStreamCaptureMode(&mode_); }

}  // namespace exactile::cuda

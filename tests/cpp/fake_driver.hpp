// tests/cpp/fake_driver.hpp - a CUDA driver without a GPU: it notes what it is asked for. Two
// devices of compute capability 9.0; their memory is the host's.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/driver.hpp"

namespace exactile::cuda {

struct StreamTag {
  std::string name;
  bool capturing = false;
};
struct EventTag {
  std::atomic<bool> is_over = false;  ///< what was enqueued before it
};

}  // namespace exactile::cuda

namespace exactile::test {

using namespace cuda;

/// What the driver was asked for. Events are called a, b, ... as they are first seen.
class Gpu {
 public:
  Result note(const std::string& call, Stream stream, Event event = nullptr) {
    const std::scoped_lock lock(mutex_);
    notes_ += call;
    if (event) {
      const auto known = names_.emplace(event, static_cast<char>('a' + names_.size()));
      (notes_ += ' ') += known.first->second;
    }
    notes_ += (stream ? " " + stream->name : "") + "; ";
    return kSuccess;
  }
  /// The notes since the last time: "copy s1; record a s1; launch s1; ".
  std::string take_notes() {
    const std::scoped_lock lock(mutex_);
    return std::exchange(notes_, "");
  }
  Event make_event() {
    const std::scoped_lock lock(mutex_);
    return &events_.emplace_back();
  }
  /// All that was enqueued is over.
  void finish() {
    const std::scoped_lock lock(mutex_);
    for (EventTag& event : events_) event.is_over = true;
  }
  void forget_names() {
    const std::scoped_lock lock(mutex_);
    names_.clear();
    notes_.clear();
  }
  std::atomic<int> allocations = 0;
  /// Sees the arguments of launches.
  std::function<void(const LaunchConfig&, void**)> on_launch = nullptr;

 private:
  std::mutex mutex_;
  std::string notes_;
  std::map<Event, char> names_;
  std::deque<EventTag> events_;
};

inline Gpu gpu;
inline StreamTag side_stream{.name = "side"};
inline thread_local Context current_context = nullptr;
inline thread_local int capture_mode = 0;  // global

inline Driver make_fake() {
  Driver fake;
  fake.cuGetErrorName = [](Result, const char** text) { return *text = "FAKE", kSuccess; };
  fake.cuGetErrorString = fake.cuGetErrorName;
  fake.cuDeviceGetCount = [](int* count) { return *count = 2, kSuccess; };
  fake.cuDeviceGet = [](DeviceHandle* device, int i) { return *device = i, kSuccess; };
  fake.cuDeviceGetName = [](char* text, int, DeviceHandle) { return text[0] = 'F', kSuccess; };
  fake.cuDeviceTotalMem = [](std::size_t* bytes, DeviceHandle) { return *bytes = 1, kSuccess; };
  fake.cuDeviceGetAttribute = [](int* value, int which, DeviceHandle) {
    *value = which == kAttributeComputeCapabilityMajor         ? 9
             : which == kAttributeComputeCapabilityMinor       ? 0
             : which == kAttributeMaxSharedMemoryPerBlockOptin ? 232448
                                                               : 132;
    return kSuccess;
  };
  fake.cuDevicePrimaryCtxRetain = [](Context* context, DeviceHandle device) {
    return *context = reinterpret_cast<Context>(uintptr_t{64} + device), kSuccess;
  };
  fake.cuCtxGetCurrent = [](Context* context) { return *context = current_context, kSuccess; };
  fake.cuCtxGetDevice = [](DeviceHandle* device) { return *device = 0, kSuccess; };
  fake.cuCtxPushCurrent = [](Context context) { return current_context = context, kSuccess; };
  fake.cuCtxPopCurrent = [](Context*) { return current_context = nullptr, kSuccess; };
  fake.cuMemAlloc = [](DevicePtr* address, std::size_t bytes) {
    ++gpu.allocations;
    return *address = reinterpret_cast<DevicePtr>(std::malloc(bytes)), kSuccess;
  };
  fake.cuMemFree = [](DevicePtr address) {
    return std::free(reinterpret_cast<void*>(address)), kSuccess;
  };
  fake.cuMemHostAlloc = [](void** address, std::size_t bytes, unsigned) {
    return *address = std::malloc(bytes), kSuccess;
  };
  fake.cuMemFreeHost = [](void* address) { return std::free(address), kSuccess; };
  fake.cuMemcpyHtoDAsync = [](DevicePtr, const void*, std::size_t, Stream stream) {
    return gpu.note("copy", stream);
  };
  fake.cuMemcpyDtoHAsync = [](void* to, DevicePtr from, std::size_t bytes, Stream stream) {
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return gpu.note("read", stream);
  };
  fake.cuMemsetD32Async = [](DevicePtr, unsigned, std::size_t, Stream stream) {
    return gpu.note("zero", stream);
  };
  fake.cuStreamCreate = [](Stream* stream, unsigned) { return *stream = &side_stream, kSuccess; };
  fake.cuStreamGetId = [](Stream stream, unsigned long long* id) {
    return *id = reinterpret_cast<uintptr_t>(stream), kSuccess;
  };
  fake.cuStreamIsCapturing = [](Stream stream, int* status) {
    return *status = stream && stream->capturing, kSuccess;
  };
  fake.cuStreamSynchronize = [](Stream stream) { return gpu.note("sync", stream); };
  fake.cuStreamWaitEvent = [](Stream stream, Event event, unsigned) {
    return gpu.note("wait", stream, event);
  };
  fake.cuThreadExchangeStreamCaptureMode = [](int* mode) {
    return std::swap(*mode, capture_mode), kSuccess;
  };
  fake.cuEventCreate = [](Event* event, unsigned) { return *event = gpu.make_event(), kSuccess; };
  fake.cuEventQuery = [](Event event) { return event->is_over ? kSuccess : kErrorNotReady; };
  fake.cuEventRecord = [](Event event, Stream stream) {
    event->is_over = false;
    return gpu.note("record", stream, event);
  };
  fake.cuEventSynchronize = [](Event event) { return gpu.note("sync", nullptr, event); };
  // As if a stream were captured, which others than relaxed threads may not disturb.
  fake.cuLibraryLoadData = [](Library*, const void*, int*, void**, unsigned, int*, void**,
                              unsigned) {
    constexpr Result kErrorStreamCaptureUnsupported = 900;
    return capture_mode == kCaptureModeRelaxed ? kSuccess : kErrorStreamCaptureUnsupported;
  };
  fake.cuLibraryGetKernel = [](Kernel*, Library, const char*) { return kSuccess; };
  fake.cuKernelSetAttribute = [](int, int, Kernel, DeviceHandle) { return kSuccess; };
  fake.cuLaunchKernelEx = [](const LaunchConfig* config, Kernel, void** arguments, void**) {
    if (gpu.on_launch) gpu.on_launch(*config, arguments);
    return gpu.note("launch", config->stream);
  };
  fake.cuTensorMapEncodeTiled = [](void*, int, uint32_t, void*, const uint64_t*, const uint64_t*,
                                   const uint32_t*, const uint32_t*, int, int, int,
                                   int) { return kSuccess; };
  return fake;
}

}  // namespace exactile::test

// src/cuda/driver.hpp - the CUDA driver, loaded when first needed: own declarations, no toolkit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace exactile::cuda {

/// Names, types and values are those of the driver API, without its prefixes.
using Result = int;
using DeviceHandle = int;
using DevicePtr = uint64_t;
using Context = struct ContextTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;
using Library = struct LibraryTag*;
using Kernel = struct KernelTag*;

inline constexpr Result kSuccess = 0, kErrorInvalidImage = 200, kErrorNoBinaryForGpu = 209,
                        kErrorInvalidPtx = 218, kErrorUnsupportedPtxVersion = 222,
                        kErrorInvalidSource = 300, kErrorNotFound = 500, kErrorNotReady = 600;
inline constexpr int kAttributeMultiprocessorCount = 16, kAttributeComputeCapabilityMajor = 75,
                     kAttributeComputeCapabilityMinor = 76,
                     kAttributeMaxSharedMemoryPerBlockOptin = 97;
inline constexpr int kKernelMaxDynamicSharedSizeBytes = 8;
inline constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2;
inline constexpr int kCaptureModeRelaxed = 2;
inline constexpr int kCaptureStatusNone = 0;
inline constexpr int kTensorMapFloat16 = 6, kTensorMapBfloat16 = 9;
inline constexpr int kTensorMapInterleaveNone = 0, kTensorMapSwizzle64B = 2,
                     kTensorMapSwizzle128B = 3, kTensorMapL2PromotionNone = 0,
                     kTensorMapFillZeros = 0;

struct LaunchAttribute {
  int id;
  alignas(8) unsigned char value[64];
};
inline constexpr int kLaunchAttributeClusterDimension = 4,
                     kLaunchAttributeProgrammaticStreamSerialization = 6;

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

// X(function, version that its signature is of, parameters)
#define EXACTILE_DRIVER_FUNCTIONS(X)                                                 \
  X(cuGetErrorName, 6000, (Result, const char**))                                    \
  X(cuGetErrorString, 6000, (Result, const char**))                                  \
  X(cuInit, 2000, (unsigned))                                                        \
  X(cuDriverGetVersion, 2020, (int*))                                                \
  X(cuDeviceGetCount, 2000, (int*))                                                  \
  X(cuDeviceGet, 2000, (DeviceHandle*, int))                                         \
  X(cuDeviceGetName, 2000, (char*, int, DeviceHandle))                               \
  X(cuDeviceTotalMem, 3020, (std::size_t*, DeviceHandle))                            \
  X(cuDeviceGetAttribute, 2000, (int*, int, DeviceHandle))                           \
  X(cuDevicePrimaryCtxRetain, 7000, (Context*, DeviceHandle))                        \
  X(cuCtxGetCurrent, 4000, (Context*))                                               \
  X(cuCtxGetDevice, 2000, (DeviceHandle*))                                           \
  X(cuCtxPushCurrent, 4000, (Context))                                               \
  X(cuCtxPopCurrent, 4000, (Context*))                                               \
  X(cuMemAlloc, 3020, (DevicePtr*, std::size_t))                                     \
  X(cuMemFree, 3020, (DevicePtr))                                                    \
  X(cuMemHostAlloc, 2020, (void**, std::size_t, unsigned))                           \
  X(cuMemFreeHost, 2000, (void*))                                                    \
  X(cuMemcpyHtoDAsync, 3020, (DevicePtr, const void*, std::size_t, Stream))          \
  X(cuMemcpyDtoHAsync, 3020, (void*, DevicePtr, std::size_t, Stream))                \
  X(cuMemsetD32Async, 3020, (DevicePtr, unsigned, std::size_t, Stream))              \
  X(cuStreamCreate, 2000, (Stream*, unsigned))                                       \
  X(cuStreamGetId, 12000, (Stream, unsigned long long*))                             \
  X(cuStreamIsCapturing, 10000, (Stream, int*))                                      \
  X(cuStreamSynchronize, 2000, (Stream))                                             \
  X(cuStreamWaitEvent, 3020, (Stream, Event, unsigned))                              \
  X(cuThreadExchangeStreamCaptureMode, 10010, (int*))                                \
  X(cuEventCreate, 2000, (Event*, unsigned))                                         \
  X(cuEventDestroy, 4000, (Event))                                                   \
  X(cuEventQuery, 2000, (Event))                                                     \
  X(cuEventRecord, 2000, (Event, Stream))                                            \
  X(cuEventSynchronize, 2000, (Event))                                               \
  X(cuLibraryLoadData, 12000,                                                        \
    (Library*, const void*, int*, void**, unsigned, int*, void**, unsigned))         \
  X(cuLibraryGetKernel, 12000, (Kernel*, Library, const char*))                      \
  X(cuLibraryUnload, 12000, (Library))                                               \
  X(cuKernelSetAttribute, 12000, (int, int, Kernel, DeviceHandle))                   \
  X(cuLaunchKernelEx, 11060, (const LaunchConfig*, Kernel, void**, void**))          \
  X(cuTensorMapEncodeTiled, 12000,                                                   \
    (void*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, \
     const uint32_t*, int, int, int, int))

struct Driver {
#define EXACTILE_MEMBER(name, version, parameters) Result(*name) parameters = nullptr;
  EXACTILE_DRIVER_FUNCTIONS(EXACTILE_MEMBER)
#undef EXACTILE_MEMBER
  int version = 0;  ///< 13000 for 13.0

  /// Throws std::runtime_error that says why there is none; asks once.
  static const Driver& get();

  /// Throws std::runtime_error with the call, the code and its text.
  void check(Result result, const char* call) const;
};

/// EXACTILE_DRIVER_CALL(driver, cuEventRecord, event, stream);
#define EXACTILE_DRIVER_CALL(driver, function, ...) \
  (driver).check((driver).function(__VA_ARGS__), #function)

}  // namespace exactile::cuda

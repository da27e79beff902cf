// tests/cpp/static_driver.cpp - src/cuda/driver.hpp against CUDA's own headers: compiles where it
// is right (tests/cuda/test_driver.py).
//
// cudaTypedefs.h has a type for each function and version: PFN_cuMemAlloc_v3020. A version that
// does not exist does not compile, nor does a parameter of another kind or size.
#include "cuda/driver.hpp"

#include <cudaTypedefs.h>

#include <exactile/cuda/params.hpp>
#include <type_traits>

namespace exactile::cuda {
namespace {

/// Passed in the same way: numbers (and enums) of one size, or pointers to such things. Structs are
/// compared below, handles are pointers to anything.
template <class A, class B>
constexpr bool alike() {
  if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
    using X = std::remove_cv_t<std::remove_pointer_t<A>>;
    using Y = std::remove_cv_t<std::remove_pointer_t<B>>;
    constexpr bool both_const =
        std::is_const_v<std::remove_pointer_t<A>> == std::is_const_v<std::remove_pointer_t<B>>;
    if constexpr (std::is_scalar_v<X> && std::is_scalar_v<Y>) return both_const && alike<X, Y>();
    return both_const && !std::is_scalar_v<X> && !std::is_scalar_v<Y>;
  } else {
    constexpr bool numbers = (std::is_integral_v<A> || std::is_enum_v<A>) &&
                             (std::is_integral_v<B> || std::is_enum_v<B>);
    return numbers && sizeof(A) == sizeof(B);
  }
}

template <class Ours, class Theirs>
struct Same : std::false_type {};
template <class R, class S, class... A, class... B>
  requires(sizeof...(A) == sizeof...(B))
struct Same<R (*)(A...), S (*)(B...)>
    : std::bool_constant<alike<R, S>() && (alike<A, B>() && ...)> {};

#define EXACTILE_SAME(name, version, parameters)                            \
  static_assert(Same<Result(*) parameters, PFN_##name##_v##version>::value, \
                #name ": other parameters than " #version " of the driver's");
EXACTILE_DRIVER_FUNCTIONS(EXACTILE_SAME)
#undef EXACTILE_SAME

static_assert(kSuccess == CUDA_SUCCESS);
static_assert(kErrorInvalidImage == CUDA_ERROR_INVALID_IMAGE);
static_assert(kErrorNoBinaryForGpu == CUDA_ERROR_NO_BINARY_FOR_GPU);
static_assert(kErrorInvalidPtx == CUDA_ERROR_INVALID_PTX);
static_assert(kErrorUnsupportedPtxVersion == CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
static_assert(kErrorInvalidSource == CUDA_ERROR_INVALID_SOURCE);
static_assert(kErrorNotFound == CUDA_ERROR_NOT_FOUND);
static_assert(kErrorNotReady == CUDA_ERROR_NOT_READY);

static_assert(kAttributeMultiprocessorCount == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(kAttributeComputeCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kAttributeComputeCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kAttributeMaxSharedMemoryPerBlockOptin ==
              CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(kKernelMaxDynamicSharedSizeBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(kEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kCaptureModeRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(kCaptureStatusNone == CU_STREAM_CAPTURE_STATUS_NONE);

static_assert(kTensorMapFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
static_assert(kTensorMapBfloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(kTensorMapInterleaveNone == CU_TENSOR_MAP_INTERLEAVE_NONE);
static_assert(kTensorMapSwizzle64B == CU_TENSOR_MAP_SWIZZLE_64B);
static_assert(kTensorMapSwizzle128B == CU_TENSOR_MAP_SWIZZLE_128B);
static_assert(kTensorMapL2PromotionNone == CU_TENSOR_MAP_L2_PROMOTION_NONE);
static_assert(kTensorMapFillZeros == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
static_assert(alignof(TensorMap) >= 64);  // what cuTensorMapEncodeTiled asks for

static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(alignof(LaunchAttribute) == alignof(CUlaunchAttribute));
static_assert(offsetof(LaunchAttribute, id) == offsetof(CUlaunchAttribute, id));
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(kLaunchAttributeClusterDimension == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
static_assert(kLaunchAttributeProgrammaticStreamSerialization ==
              CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

static_assert(sizeof(LaunchConfig) == sizeof(CUlaunchConfig));
#define EXACTILE_SAME(ours, theirs)                                                 \
  static_assert(offsetof(LaunchConfig, ours) == offsetof(CUlaunchConfig, theirs) && \
                sizeof(LaunchConfig::ours) == sizeof(CUlaunchConfig::theirs))
EXACTILE_SAME(grid_x, gridDimX);
EXACTILE_SAME(grid_y, gridDimY);
EXACTILE_SAME(grid_z, gridDimZ);
EXACTILE_SAME(block_x, blockDimX);
EXACTILE_SAME(block_y, blockDimY);
EXACTILE_SAME(block_z, blockDimZ);
EXACTILE_SAME(shared_bytes, sharedMemBytes);
EXACTILE_SAME(stream, hStream);
EXACTILE_SAME(attributes, attrs);
EXACTILE_SAME(num_attributes, numAttrs);
#undef EXACTILE_SAME

}  // namespace
}  // namespace exactile::cuda

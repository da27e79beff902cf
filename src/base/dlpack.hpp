// src/base/dlpack.hpp - DLPack, as far as it is used here: numbers and C structures of version 1.3.
#pragma once

#include <cstdint>

#include "base/types.hpp"

namespace exactile {

/// Where an array lies: DLDeviceType.
inline constexpr int kDeviceCpu = 1, kDeviceCuda = 2, kDeviceCudaManaged = 13, kDeviceOneApi = 14;

struct DeviceTypeName {
  int type;
  const char* name;
};
inline constexpr DeviceTypeName kDeviceTypeNames[] = {{kDeviceCpu, "CPU"},
                                                      {kDeviceCuda, "CUDA"},
                                                      {3, "CUDA host memory"},
                                                      {4, "OpenCL"},
                                                      {7, "Vulkan"},
                                                      {8, "Metal"},
                                                      {9, "VPI"},
                                                      {10, "ROCm"},
                                                      {11, "ROCm host memory"},
                                                      {12, "an extension device"},
                                                      {kDeviceCudaManaged, "CUDA managed memory"},
                                                      {kDeviceOneApi, "oneAPI"},
                                                      {15, "WebGPU"},
                                                      {16, "Hexagon"},
                                                      {17, "MAIA"},
                                                      {18, "Trainium"}};

}  // namespace exactile

namespace exactile::dlpack {

/// DLDataTypeCode.
enum class TypeCode : uint8_t { kInt, kUInt, kFloat, kOpaque, kBfloat, kComplex, kBool };

struct DataType {
  TypeCode code;
  uint8_t bits;
  uint16_t lanes;
  bool operator==(const DataType&) const = default;
};

inline constexpr DataType kUInt16{TypeCode::kUInt, 16, 1};

/// By Dtype.
inline constexpr DataType kDataTypes[kNumArrayDtypes] = {{TypeCode::kFloat, 32, 1},
                                                         {TypeCode::kFloat, 16, 1},
                                                         {TypeCode::kBfloat, 16, 1},
                                                         {TypeCode::kInt, 32, 1},
                                                         {TypeCode::kInt, 64, 1}};
constexpr DataType data_type(Dtype dtype) { return kDataTypes[static_cast<int>(dtype)]; }

struct Version {
  uint32_t major, minor;
};

struct Tensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t rank;
  DataType dtype;
  int64_t* shape;    ///< (rank,)
  int64_t* strides;  ///< (rank,), in elements; null: C-contiguous
  uint64_t byte_offset;
};

/// What a capsule named "dltensor_versioned" holds; one named "dltensor" begins with a Tensor.
struct ManagedTensorVersioned {
  Version version;
  void* manager;
  void (*deleter)(ManagedTensorVersioned*);
  uint64_t flags;
  Tensor tensor;
  static constexpr uint64_t kReadOnly = 1;
};

/// What the capsule "dlpack_exchange_api" holds, an attribute __dlpack_c_exchange_api__ of a class
/// of tensors. Functions return 0, or -1 with a Python exception set, and need the GIL.
struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;  ///< of a lower major version, or null
  int (*allocate)(Tensor* like, ManagedTensorVersioned** made, void* context,
                  void (*set_error)(void* context, const char* kind, const char* text));
  int (*managed_of_object)(void* object, ManagedTensorVersioned** made);
  int (*object_of_managed)(ManagedTensorVersioned* tensor, void** object);
  int (*view_of_object)(void* object, Tensor* view);  ///< without a reference; may be null
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace exactile::dlpack

// src/base/run_args.cpp - names of devices.
#include "base/run_args.hpp"

namespace exactile {

std::string device_name(int type) {
  for (const DeviceTypeName& known : kDeviceTypeNames) {
    if (known.type == type) return known.name;
  }
  return "DLPack device type " + std::to_string(type);
}

std::string to_string(const Device& device) {
  if (device.type == kDeviceCpu) return "CPU";
  return device_name(device.type) + " " + std::to_string(device.id);
}

}  // namespace exactile

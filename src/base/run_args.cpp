// src/base/run_args.cpp - names of devices.
#include "base/run_args.hpp"

#include <utility>

namespace exactile {

std::string device_name(int type) {
  constexpr std::pair<int, const char*> kNames[] = {{1, "CPU"},
                                                    {2, "CUDA"},
                                                    {3, "CUDA host memory"},
                                                    {4, "OpenCL"},
                                                    {7, "Vulkan"},
                                                    {8, "Metal"},
                                                    {9, "VPI"},
                                                    {10, "ROCm"},
                                                    {11, "ROCm host memory"},
                                                    {12, "an extension device"},
                                                    {13, "CUDA managed memory"},
                                                    {14, "oneAPI"},
                                                    {15, "WebGPU"},
                                                    {16, "Hexagon"},
                                                    {17, "MAIA"},
                                                    {18, "Trainium"}};
  for (const auto& [number, name] : kNames) {
    if (number == type) return name;
  }
  return "DLPack device type " + std::to_string(type);
}

std::string to_string(const Device& device) {
  if (device.type == kDeviceCpu) return "CPU";
  return device_name(device.type) + " " + std::to_string(device.id);
}

}  // namespace exactile

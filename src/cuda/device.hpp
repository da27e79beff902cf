// src/cuda/device.hpp - the GPUs of this process, their kernels, and memory for plans.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/kernels.hpp"
#include "jit/kernel_table.hpp"

namespace exactile::cuda {

/// Whether a block has pinned host memory of its size beside it.
enum class Pinned : unsigned char { kNone, kBeside };

/// Device memory, and host memory beside it or null.
struct Block {
  DevicePtr device = 0;
  std::byte* host = nullptr;
  std::size_t bytes = 0;
};

/// A kernel that is ready to be launched on one device.
struct LoadedKernel {
  Kernel handle;
  Shape shape;
};

/// A stream as a launch finds it.
struct LaunchStream {
  explicit LaunchStream(Stream handle);

  Stream handle;
  bool capturing;             ///< into a graph
  unsigned long long id = 0;  ///< unlike handles, not used again; 0 while capturing
};

/// One GPU: its primary context, and what is kept for it until the process ends. Thread-safe.
class Device {
 public:
  /// Throws std::invalid_argument for an ordinal that does not exist.
  static Device& get(int ordinal);
  static int count();
  /// Of the calling thread's context, else 0.
  static int current();

  int ordinal() const { return ordinal_; }
  const std::string& name() const { return name_; }
  int major() const { return major_; }
  int minor() const { return minor_; }
  int multiprocessors() const { return multiprocessors_; }
  std::size_t memory_bytes() const { return memory_bytes_; }
  /// Makes the primary context, once.
  void open();
  Context context() const { return context_; }
  /// For copies while the caller's stream is captured.
  Stream side_stream() const { return side_stream_; }

  /// The family that EXACTILE_CUDA_FAMILY names, else the best that runs here; one that takes any
  /// array, if asked for. Throws std::runtime_error for a device that none runs on.
  Family family(bool any_array = false) const;
  /// What the kernels of a family are compiled for: "sm_90a", "sm_80".
  std::string architecture(Family family) const;

  /// Found or compiled on first use; only calls for the same kernel wait for that. Throws
  /// std::runtime_error where it cannot be loaded.
  const LoadedKernel& kernel(const AnySpec& spec);

  /// At least `bytes`, not in use by anything. The context must be current.
  Block acquire(std::size_t bytes, Pinned pinned = Pinned::kBeside);
  /// Gives blocks back; they are used again when all of `last_uses` have happened.
  void release(std::vector<Block> blocks, std::vector<Event> last_uses);
  Event make_event();

 private:
  explicit Device(int ordinal);
  LoadedKernel load(const jit::Program& program, const Shape& shape) const;
  Kernel load(const jit::Program& program) const;

  /// Released blocks, and what they still wait for.
  struct Released {
    std::vector<Block> blocks;
    std::vector<Event> last_uses;
  };
  void collect_idle();

  const Driver& driver_;
  int ordinal_;
  DeviceHandle handle_ = 0;
  std::string name_;
  int major_ = 0, minor_ = 0, multiprocessors_ = 0, max_shared_bytes_ = 0;
  std::size_t memory_bytes_ = 0;

  jit::KernelTable<AnySpec, LoadedKernel> kernels_;

  std::mutex mutex_;  // of the members below; context_ and side_stream_ are set once
  std::atomic<Context> context_ = nullptr;
  Stream side_stream_ = nullptr;
  std::vector<Released> released_;
  std::vector<Block> idle_;
  std::vector<Event> events_;
};

/// Makes a device's context current for the life of the scope.
class ContextScope {
 public:
  explicit ContextScope(Device& device);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  bool pushed_ = false;
};

/// While in scope, the thread may allocate and synchronise although a stream is being captured.
class RelaxedCapture {
 public:
  RelaxedCapture();
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  int mode_ = kCaptureModeRelaxed;
};

}  // namespace exactile::cuda

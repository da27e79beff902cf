// src/jit/cache_folder.hpp - the folder where compiled kernels are kept. We load what lies there,
// so no other user may be able to write to it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace exactile::jit {

/// A file descriptor, closed with the object.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  bool is_open() const { return fd_ >= 0; }
  int get() const { return fd_; }
  /// False where what was written did not arrive.
  bool close();

 private:
  int fd_;
};

/// A folder of ours, or of root, that no other user can write to. It is used through the descriptor
/// that was checked, whatever becomes of its path.
class CacheFolder {
 public:
  /// Nothing where there is none. Throws std::runtime_error for a path that is not absolute, and
  /// for a folder that is not safe, with what to do about it: one of another user, one that others
  /// can write to, a symbolic link, one below a folder in which all users can rename it.
  static std::optional<CacheFolder> open(const std::filesystem::path& path);

  /// As open(); makes it, and folders above it, with mode 0700 where there is none. Throws
  /// std::runtime_error where that cannot be done.
  static CacheFolder make(const std::filesystem::path& path);

  /// Whether files can be made in it; no file is made to find out.
  bool is_writable() const;

  /// A regular file of ours, or of root, that no other user can write to, of at most 64 MiB.
  /// Nothing for anything else that has the name.
  std::optional<std::string> read(const std::string& name) const;

  /// Writes under another name, then renames, with mode 0600. Takes the place of whatever has the
  /// name, unless that is a folder. Throws std::runtime_error where that cannot be done.
  void write(const std::string& name, std::string_view content) const;

 private:
  explicit CacheFolder(Descriptor folder) : folder_(std::move(folder)) {}

  Descriptor folder_;
};

}  // namespace exactile::jit

// src/jit/cache_folder.cpp - opens, checks, reads and writes through descriptors (POSIX.1-2008).
#include "jit/cache_folder.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <utility>

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

constexpr off_t kMaxEntryBytes = off_t{64} << 20;
constexpr mode_t kOthersWrite = S_IWGRP | S_IWOTH;

std::string text_of_errno() { return std::strerror(errno); }

std::string octal(mode_t mode) {
  char text[8];
  std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode) & 07777u);
  return text;
}

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(why); }

/// Root could replace the program itself: what is root's is as safe as what is ours.
bool is_trusted_owner(uid_t owner) { return owner == geteuid() || owner == 0; }

void check_folder(const struct stat& about) {
  if (!is_trusted_owner(about.st_uid)) {
    refuse("it belongs to user " + std::to_string(about.st_uid) + ", expected user " +
           std::to_string(geteuid()));
  }
  if (about.st_mode & kOthersWrite) {
    refuse("others can write to it (mode " + octal(about.st_mode) + "): chmod go-w it");
  }
}

/// In a folder that all users can write to, each can put another folder of ours in the place of
/// this one, unless the sticky bit is set. What a group may do is left to who made the group.
void check_folders_above(const Descriptor& folder, const fs::path& path) {
  std::error_code ignored;
  fs::path name = fs::canonical(path, ignored);
  struct stat below{};
  if (fstat(folder.get(), &below) != 0) refuse(text_of_errno());
  Descriptor at(openat(folder.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
  while (true) {
    name = name.parent_path();
    struct stat about{};
    if (!at.is_open() || fstat(at.get(), &about) != 0) refuse(text_of_errno());
    if (about.st_dev == below.st_dev && about.st_ino == below.st_ino) return;  // the root
    if (about.st_mode & S_IWOTH && !(about.st_mode & S_ISVTX)) {
      refuse("all users can write to " + name.string() + " above it (mode " + octal(about.st_mode) +
             "): chmod o-w or chmod +t that");
    }
    below = about;
    at = Descriptor(openat(at.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
  }
}

/// A slash at its end would follow a link.
std::string without_slashes(const fs::path& path) {
  std::string text = path.string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() { close(); }

bool Descriptor::close() {
  const int fd = std::exchange(fd_, -1);
  return fd < 0 || ::close(fd) == 0;
}

std::optional<CacheFolder> CacheFolder::open(const fs::path& path) {
  if (!path.is_absolute()) refuse("expected an absolute path");
  const std::string name = without_slashes(path);
  Descriptor folder(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder.is_open()) {
    if (errno == ENOENT) return std::nullopt;
    const std::string why = text_of_errno();
    std::error_code ignored;
    refuse(fs::is_symlink(name, ignored) ? "it is a symbolic link, which is not followed" : why);
  }
  struct stat about{};
  if (fstat(folder.get(), &about) != 0) refuse(text_of_errno());
  check_folder(about);
  check_folders_above(folder, name);
  return CacheFolder(std::move(folder));
}

CacheFolder CacheFolder::make(const fs::path& path) {
  if (auto folder = open(path)) return *std::move(folder);
  fs::path folders;
  for (const fs::path& part : fs::path(without_slashes(path))) {
    folders /= part;
    if (mkdir(folders.c_str(), S_IRWXU) == 0 || errno == EEXIST) continue;
    const std::string why = text_of_errno();
    std::error_code ignored;
    if (!fs::is_directory(folders, ignored)) refuse(folders.string() + ": " + why);
  }
  if (auto folder = open(path)) return *std::move(folder);
  refuse("it was removed as it was made");
}

bool CacheFolder::is_writable() const {
  return faccessat(folder_.get(), ".", W_OK | X_OK, AT_EACCESS) == 0;
}

std::optional<std::string> CacheFolder::read(const std::string& name) const {
  // O_NONBLOCK: a FIFO would wait for a writer.
  const Descriptor file(
      openat(folder_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat about{};
  if (!file.is_open() || fstat(file.get(), &about) != 0) return std::nullopt;
  if (!S_ISREG(about.st_mode) || !is_trusted_owner(about.st_uid) || about.st_mode & kOthersWrite ||
      about.st_size > kMaxEntryBytes) {
    return std::nullopt;
  }
  std::string content(static_cast<std::size_t>(about.st_size), '\0');
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t got = ::read(file.get(), content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    done += static_cast<std::size_t>(got);
  }
  return content;
}

void CacheFolder::write(const std::string& name, std::string_view content) const {
  std::random_device random;
  const uint64_t number = uint64_t{random()} << 32 | random();
  const std::string temporary = name + "." + std::to_string(number) + ".tmp";
  Descriptor file(openat(folder_.get(), temporary.c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (!file.is_open()) refuse(text_of_errno());
  const auto give_up = [&](const std::string& why) {
    unlinkat(folder_.get(), temporary.c_str(), 0);
    refuse(why);
  };
  while (!content.empty()) {
    const ssize_t put = ::write(file.get(), content.data(), content.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) give_up(text_of_errno());
    content.remove_prefix(static_cast<std::size_t>(put));
  }
  if (!file.close()) give_up(text_of_errno());
  if (renameat(folder_.get(), temporary.c_str(), folder_.get(), name.c_str()) != 0) {
    give_up(name + ": " + text_of_errno());
  }
}

}  // namespace exactile::jit

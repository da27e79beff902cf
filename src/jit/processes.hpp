// src/jit/processes.hpp - the parts of a build, each in a process of its own: NVRTC compiles one
// program at a time in a process, and the SYCL runtime may only be loaded after a fork.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>

namespace exactile::jit {

/// Calls run(part) for every part, in at most `jobs` processes at a time, and ended(n) here when n
/// of them have ended. A part fails by an exception, whose text is printed behind `name`. False
/// after the first that fails, when those under way have ended; no others are begun then.
template <class Run, class Ended>
bool run_in_processes(const char* name, std::size_t parts, std::size_t jobs, Run run, Ended ended) {
  const auto run_alone = [&](std::size_t part) {
    try {
      run(part);
      return 0;
    } catch (const std::exception& error) {
      std::cerr << name << ": " << error.what() << '\n';
      return 1;
    }
  };
  bool good = true;
  std::size_t num_begun = 0, num_ended = 0;
  while (num_ended < num_begun || (good && num_begun < parts)) {
    if (good && num_begun < parts && num_begun - num_ended < jobs) {
      std::cout.flush();  // else a child would print it again
      const pid_t child = fork();
      if (child == 0) {
        const int code = run_alone(num_begun);
        std::cout.flush();
        _exit(code);
      }
      if (child < 0) throw std::runtime_error("fork: " + std::string(std::strerror(errno)));
      ++num_begun;
      continue;
    }
    int status = 0;
    if (wait(&status) < 0) {
      if (errno == EINTR) continue;
      throw std::runtime_error("wait: " + std::string(std::strerror(errno)));
    }
    good &= status == 0;
    ended(++num_ended);
  }
  return good;
}

}  // namespace exactile::jit

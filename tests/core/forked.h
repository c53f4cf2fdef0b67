// A forked child of a test.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace gptoss::test {

// What `work` returned in a forked child; -1 if the child was killed, as it is when it hangs.
inline int in_child(const std::function<int()>& work) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(work());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace gptoss::test

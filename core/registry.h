// Which backends there are: the CPU's, which is built in, and those in shared libraries.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace gptoss {

struct BackendStatus {
  std::string name;
  bool available;
  std::string reason;  // why not, or what it is
};

// Every backend this build knows, the preferred first.
// `plugin_directory` is where shared-library backends are looked for.
std::vector<BackendStatus> list_backends(const std::string& plugin_directory);

// `device`: a backend's name. Throws Error with the reason when it is unknown or not available.
std::unique_ptr<Backend> make_backend(const std::string& device,
                                      const std::string& plugin_directory, const Options& options);

}  // namespace gptoss

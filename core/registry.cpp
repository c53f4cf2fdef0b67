#include "core/registry.h"

#include <array>
#include <filesystem>

#include "core/check.h"
#include "core/cpu/backend.h"
#include "core/parallel.h"

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#define GPTOSS_HAVE_DLOPEN 1
#endif

namespace gptoss {

namespace {

// Backends that live in a shared library of their own, fastest first.
constexpr std::array plugin_names = {"cuda"};

struct PluginResult {
  const BackendPlugin* plugin = nullptr;
  std::string reason;
};

PluginResult find_plugin(const std::string& name, const std::string& directory) {
#ifdef GPTOSS_HAVE_DLOPEN
  const std::string path = directory + "/libgptoss_" + name + ".so";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return {nullptr, gptoss::format("this installation has no {} backend", name)};
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* message = dlerror();
    return {nullptr, message != nullptr ? message : "cannot be loaded"};
  }
  // The library stays loaded: the process may still hold objects of its classes.
  const auto* plugin = static_cast<const BackendPlugin*>(dlsym(library, "gptoss_backend_plugin"));
  if (plugin == nullptr) {
    return {nullptr, gptoss::format("{} exports no gptoss_backend_plugin", path)};
  }
  if (plugin->abi != backend_abi) {
    return {nullptr, gptoss::format("{} was built for interface {}, expected {}{}", path,
                                    plugin->abi, backend_abi,
                                    backend_abi / libcxx_abi != plugin->abi / libcxx_abi
                                        ? " (of another C++ standard library)"
                                        : "")};
  }
  std::array<char, 512> reason{};
  if (!plugin->available(reason.data(), reason.size())) {
    return {nullptr, reason.data()};
  }
  return {plugin, reason.data()};
#else
  return {nullptr,
          gptoss::format("shared-library backends are not supported on this platform ({} in {})",
                         name, directory)};
#endif
}

}  // namespace

std::vector<BackendStatus> list_backends(const std::string& plugin_directory) {
  std::vector<BackendStatus> list;
  for (const char* name : plugin_names) {
    const PluginResult found = find_plugin(name, plugin_directory);
    list.push_back({name, found.plugin != nullptr, found.reason});
  }
  list.push_back({"cpu", true, cpu::describe_backend()});
  return list;
}

std::unique_ptr<Backend> make_backend(const std::string& device,
                                      const std::string& plugin_directory, const Options& options) {
  GPTOSS_CHECK(options.threads >= 0 && options.threads <= 4096,
               "threads must lie in 0..4096, found {}", options.threads);
  constexpr int max_ranks = 8;
  GPTOSS_CHECK(options.ranks >= 1 && options.ranks <= max_ranks,
               "tensor parallel: expected 1 to {} ranks, found {}", max_ranks, options.ranks);
  for (const char* name : plugin_names) {
    if (device != name) {
      continue;
    }
    const PluginResult found = find_plugin(name, plugin_directory);
    GPTOSS_CHECK(found.plugin != nullptr, "device {} is not available: {}", device, found.reason);
    const auto create = [plugin = found.plugin](const Options& of_rank) {
      return std::unique_ptr<Backend>(plugin->create(of_rank));
    };
    if (options.ranks == 1) {
      return create(options);
    }
    std::vector<std::unique_ptr<Communicator>> communicators;
    found.plugin->communicators(options.ranks, communicators);
    return make_parallel_backend(options, std::move(communicators), create);
  }
  GPTOSS_CHECK(device == "cpu", "device: expected cpu or cuda, found {}", device);
  if (options.ranks > 1) {
    return make_parallel_backend(options, thread_communicators(options.ranks), cpu::make_backend);
  }
  return cpu::make_backend(options);
}

}  // namespace gptoss

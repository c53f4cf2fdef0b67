# oneDNN for the dense products. The first of these that serves is taken:
#   1. the folder that the user names: -Ddnnl_DIR=…;
#   2. one under CMAKE_PREFIX_PATH or in the system, newer than the wheel's 3.2;
#   3. the wheel onednn-devel-cpu-gomp, in the prefix of the Python that builds us.
# Only a build on GNU OpenMP will do: it shares the thread pool of our own kernels.
#
# Sets GPTOSS_HAVE_ONEDNN, gptoss_onednn_rpath (the folder of libdnnl, unless it is the wheel's,
# which the installed module finds by a relative path) and gptoss_onednn_status.
set(GPTOSS_HAVE_ONEDNN OFF)
set(gptoss_onednn_rpath "")
set(gptoss_onednn_status "off, generic matrix product")
if(GPTOSS_ONEDNN STREQUAL "OFF")
  return()
endif()

# sys.prefix would not do: under pip's build isolation the wheel lies in an overlay beside it. The
# installed file list of the distribution is right everywhere.
set(onednn_wheel "")
if(Python_Interpreter_FOUND)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import importlib.metadata as metadata
try:
    files = metadata.files("onednn-devel-cpu-gomp") or []
except metadata.PackageNotFoundError:
    files = []
for file in files:
    if file.name == "dnnl-config.cmake":
        print(file.locate().resolve().parent.as_posix(), end="")
]]
    OUTPUT_VARIABLE onednn_wheel
    ERROR_QUIET)
endif()

set(candidates "")
if(dnnl_DIR)  # named by the user, or chosen by an earlier run
  list(APPEND candidates "${dnnl_DIR}/dnnl-config.cmake")
endif()
unset(dnnl_DIR CACHE)
# There is no version 99: nothing is loaded, but CMake lists what lies where it looks. PATH is left
# out, which under build isolation leads to the wheel.
find_package(dnnl 99 CONFIG QUIET NO_SYSTEM_ENVIRONMENT_PATH)
set(least 3.2)
if(onednn_wheel)
  set(least 3.3)
endif()
foreach(config version IN ZIP_LISTS dnnl_CONSIDERED_CONFIGS dnnl_CONSIDERED_VERSIONS)
  if(version VERSION_GREATER_EQUAL least)
    list(APPEND candidates "${config}")
  endif()
endforeach()
if(onednn_wheel)
  list(APPEND candidates "${onednn_wheel}/dnnl-config.cmake")
endif()

set(problem "not found (pip install onednn-devel-cpu-gomp, or name a folder by -Ddnnl_DIR=…)")
foreach(config ${candidates})
  if(NOT EXISTS "${config}")  # gone with the environment of an earlier build
    continue()
  endif()
  file(STRINGS "${config}" on_openmp REGEX "DNNL_CPU_THREADING_RUNTIME \"OMP\"")
  if(NOT on_openmp)
    set(problem "${config} does not run on OpenMP (name another by -Ddnnl_DIR=…)")
    continue()
  endif()
  get_filename_component(folder "${config}" DIRECTORY)
  find_package(dnnl 3.2 CONFIG QUIET PATHS "${folder}" NO_DEFAULT_PATH)
  if(dnnl_FOUND)
    break()
  endif()
  set(problem "${config} is not of version 3.2 or newer")
endforeach()
if(NOT dnnl_FOUND)
  if(GPTOSS_ONEDNN STREQUAL "ON")
    message(FATAL_ERROR "GPTOSS_ONEDNN=ON, but oneDNN: ${problem}")
  endif()
  set(gptoss_onednn_status "${gptoss_onednn_status}: ${problem}")
  return()
endif()

set(GPTOSS_HAVE_ONEDNN ON)
set(gptoss_onednn_status "${dnnl_VERSION} in ${dnnl_DIR}")
get_filename_component(onednn_found "${dnnl_DIR}" REALPATH)
if(NOT onednn_found STREQUAL "${onednn_wheel}")
  get_target_property(onednn_library DNNL::dnnl LOCATION)
  get_filename_component(gptoss_onednn_rpath "${onednn_library}" DIRECTORY)
endif()

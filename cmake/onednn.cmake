# oneDNN for the dense products. Searched in this order, the first that serves wins:
#   1. where the user points: -Ddnnl_DIR=…, CMAKE_PREFIX_PATH;
#   2. a system installation newer than the wheel's 3.2;
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

# A folder remembered from an earlier build may be gone with that build's environment.
if(dnnl_DIR AND NOT EXISTS "${dnnl_DIR}/dnnl-config.cmake")
  unset(dnnl_DIR CACHE)
endif()
# Without PATH in the search, which under build isolation leads to the wheel.
find_package(dnnl 3.3 CONFIG QUIET NO_SYSTEM_ENVIRONMENT_PATH)
if(NOT dnnl_FOUND AND onednn_wheel)
  find_package(dnnl 3.2 CONFIG QUIET PATHS "${onednn_wheel}" NO_DEFAULT_PATH)
endif()
if(NOT dnnl_FOUND)
  find_package(dnnl 3.2 CONFIG QUIET)
endif()

if(NOT dnnl_FOUND)
  set(problem "not found (pip install onednn-devel-cpu-gomp, or name a folder by -Ddnnl_DIR=…)")
elseif(NOT DNNL_CPU_THREADING_RUNTIME STREQUAL "OMP")
  set(problem "${dnnl_DIR} runs on ${DNNL_CPU_THREADING_RUNTIME}, not on OpenMP \
(name another by -Ddnnl_DIR=…)")
else()
  set(problem "")
endif()
if(problem)
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

# SPDX-License-Identifier: Apache-2.0
# CUDA in two ways, see docs/cuda.md.
#
# Everywhere: kernels/cuda/*.cu are compiled by g++ and run by the emulator of tests/cuda_emu/; this
# takes only CUDA's headers. With WEFT_CUDA (the preset "cuda"): nvcc compiles them too, and `weft`
# has the device "cuda". Both come from WEFT_CUDA_ROOT, where `./dev` unpacks the wheels of
# scripts/requirements-cuda*.txt, else from a toolkit of the system.
#
# The backend's host code is compiled once, as weft_cuda_host, and linked with either.
option(WEFT_CUDA "Build the CUDA backend with nvcc" OFF)
set(WEFT_CUDA_ARCHITECTURES "80;90a" CACHE STRING "Compute capabilities to compile for, as nvcc names them")
set(WEFT_CUDA_ROOT ${CMAKE_SOURCE_DIR}/build/cuda-toolkit/nvidia/cu13 CACHE PATH "CUDA: the folder of bin/, include/ and lib/")

set(cuda_roots ${WEFT_CUDA_ROOT} $ENV{CUDA_HOME} /usr/local/cuda /opt/cuda)
find_path(WEFT_CUDA_INCLUDE cuda_runtime_api.h PATHS ${cuda_roots} PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(WEFT_CUDART cudart_static PATHS ${cuda_roots} PATH_SUFFIXES lib64 lib NO_DEFAULT_PATH)
find_program(WEFT_NVCC nvcc PATHS ${cuda_roots} PATH_SUFFIXES bin NO_DEFAULT_PATH)
mark_as_advanced(WEFT_CUDA_INCLUDE WEFT_CUDART WEFT_NVCC)

# An older toolkit of the system lacks names that we use: it is as good as none.
set(WEFT_CUDA_OLDEST 13000)
set(WEFT_CUDA_FOUND OFF)
if(WEFT_CUDA_INCLUDE)
    file(STRINGS ${WEFT_CUDA_INCLUDE}/cuda_runtime_api.h version REGEX "define CUDART_VERSION +[0-9]+")
    string(REGEX MATCH "[0-9]+" version "${version}")
    if(version GREATER_EQUAL WEFT_CUDA_OLDEST)
        set(WEFT_CUDA_FOUND ON)
    else()
        unset(WEFT_CUDA_INCLUDE CACHE) # looked for again next time: wheels may have come
        unset(WEFT_CUDART CACHE)
        unset(WEFT_NVCC CACHE)
    endif()
endif()

file(GLOB_RECURSE weft_cuda_kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
file(GLOB_RECURSE weft_cuda_host_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.c)
file(GLOB others CONFIGURE_DEPENDS
    ${CMAKE_SOURCE_DIR}/base/*_cuda*.c ${CMAKE_SOURCE_DIR}/transport/*/*_cuda*.c
    ${CMAKE_SOURCE_DIR}/transport/*/cuda/*.c ${CMAKE_SOURCE_DIR}/transport/*/nccl/*.c)
list(APPEND weft_cuda_host_sources ${others})

# weft_cuda_files(OUT name...): the paths of files below kernels/cuda by their names, which are unique; of a
# kernel the .cu may be left away.
function(weft_cuda_files out)
    set(paths)
    foreach(name ${ARGN})
        set(found ${weft_cuda_kernels} ${weft_cuda_host_sources})
        list(FILTER found INCLUDE REGEX "/kernels/cuda/(.*/)?${name}(\\.cu)?$")
        list(LENGTH found count)
        if(NOT count EQUAL 1)
            message(FATAL_ERROR "kernels/cuda has ${count} files \"${name}\": ${found}")
        endif()
        list(APPEND paths ${found})
    endforeach()
    set(${out} ${paths} PARENT_SCOPE)
endfunction()

# The emulator's fibers and hooks are written for GCC on x86-64, and sanitizers cannot follow them.
set(WEFT_CUDA_EMULATED OFF)
if(WEFT_CUDA_FOUND AND CMAKE_C_COMPILER_ID STREQUAL GNU AND NOT WEFT_SANITIZE
        AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    include(CheckLanguage)
    check_language(CXX)
    if(CMAKE_CXX_COMPILER)
        set(WEFT_CUDA_EMULATED ON)
        enable_language(CXX)
        if(CCACHE)
            set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
        endif()
        set(CMAKE_CXX_STANDARD 20)
        set(CMAKE_CXX_STANDARD_REQUIRED ON)
        set(CMAKE_CXX_EXTENSIONS OFF)
    endif()
endif()
if(NOT WEFT_CUDA_EMULATED)
    message(STATUS "CUDA: no headers of 13.0 or later (or not GCC on x86-64); the emulated tests are left out")
endif()
if(WEFT_CUDA AND NOT (WEFT_NVCC AND WEFT_CUDART AND WEFT_CUDA_FOUND))
    message(FATAL_ERROR "WEFT_CUDA: no toolkit of CUDA 13.0 or later in ${WEFT_CUDA_ROOT} nor in the system; `./dev build cuda` fetches one")
endif()

# After weft_kernels and weft_base are made.
function(weft_cuda_host_library)
    if(NOT weft_cuda_host_sources OR NOT (WEFT_CUDA OR WEFT_CUDA_EMULATED))
        return()
    endif()
    add_library(weft_cuda_host OBJECT ${weft_cuda_host_sources})
    target_link_libraries(weft_cuda_host PUBLIC weft_flags weft_libraries)
    target_include_directories(weft_cuda_host SYSTEM PUBLIC ${WEFT_CUDA_INCLUDE})
endfunction()

# weft_nvcc_objects(OUT source.cu...): compiles each with nvcc, once for the whole build. A warning or
# a register that spills is an error.
set(nvcc_launcher)
if(CCACHE)
    set(nvcc_launcher ${CCACHE})
endif()
set(nvcc_flags -std=c++20 -O3 -lineinfo --expt-relaxed-constexpr -I${CMAKE_SOURCE_DIR} --Werror all-warnings
    -Xcompiler=-Wall,-Wextra,-fPIC -Xptxas=--warn-on-spills,--warning-as-error)
foreach(architecture ${WEFT_CUDA_ARCHITECTURES})
    list(APPEND nvcc_flags -gencode=arch=compute_${architecture},code=sm_${architecture})
endforeach()
# Newer GPUs compile the oldest one's code when they load it.
list(GET WEFT_CUDA_ARCHITECTURES 0 oldest)
if(oldest MATCHES "^[0-9]+$")
    list(APPEND nvcc_flags -gencode=arch=compute_${oldest},code=compute_${oldest})
endif()

function(weft_nvcc_objects out)
    set(objects)
    foreach(source ${ARGN})
        get_filename_component(stem ${source} NAME_WE)
        set(object ${CMAKE_BINARY_DIR}/nvcc/${stem}.o)
        list(APPEND objects ${object})
        if(NOT TARGET nvcc_${stem})
            add_custom_command(OUTPUT ${object}
                COMMAND ${nvcc_launcher} ${WEFT_NVCC} ${nvcc_flags} -MD -MF ${object}.d -c ${source} -o ${object}
                DEPENDS ${source} ${WEFT_NVCC}
                DEPFILE ${object}.d
                COMMENT "Compiling ${stem}.cu with nvcc"
                VERBATIM)
            add_custom_target(nvcc_${stem} DEPENDS ${object})
        endif()
    endforeach()
    set(${out} ${objects} PARENT_SCOPE)
endfunction()

# weft_link_cuda(TARGET source.cu...): the kernels for a GPU and the CUDA runtime.
function(weft_link_cuda target)
    weft_nvcc_objects(objects ${ARGN})
    target_sources(${target} PRIVATE ${objects})
    set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    foreach(source ${ARGN})
        get_filename_component(stem ${source} NAME_WE)
        add_dependencies(${target} nvcc_${stem})
    endforeach()
    target_link_libraries(${target} PRIVATE ${WEFT_CUDART} stdc++ ${CMAKE_DL_LIBS} rt Threads::Threads)
endfunction()

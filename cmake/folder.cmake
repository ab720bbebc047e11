# SPDX-License-Identifier: Apache-2.0
# weft_isa_flags(source...): a file named *_avx2.c, *_avx512.c, *_bf16.c (AVX-512 with BF16) or
# *_amx.c (the same with AMX) is compiled for that instruction set.
function(weft_isa_flags)
    foreach(source ${ARGV})
        if(source MATCHES "_avx2\\.c$")
            set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
        elseif(source MATCHES "_(avx512|bf16|amx)\\.c$")
            set(flags -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
                      -mprefer-vector-width=512)
            if(source MATCHES "_(bf16|amx)\\.c$")
                list(APPEND flags -mavx512bf16)
            endif()
            if(source MATCHES "_amx\\.c$")
                list(APPEND flags -mamx-tile -mamx-int8 -mamx-bf16)
            endif()
            set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
        endif()
    endforeach()
endfunction()

# Leaves files of instruction sets that this processor's kind does not have out of a list.
function(weft_filter_isa list)
    if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        list(FILTER ${list} EXCLUDE REGEX "_(avx2|avx512|bf16|amx)\\.c$")
        set(${list} ${${list}} PARENT_SCOPE)
    endif()
endfunction()

# weft_folder(PATH USES folder... LIBRARIES target...)
# Makes the static library weft_<path> of every .c below PATH. Files are found, not listed, so that
# adding a backend, an op or a model touches its .def table and nothing here. Files of an
# instruction set (weft_isa_flags) are left out on other machines, and those of a library where its
# headers are not to be had.
function(weft_folder path)
    cmake_parse_arguments(ARG "" "" "USES;LIBRARIES" ${ARGN})
    string(REPLACE "/" "_" name weft_${path})
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${path}/*.c)
    weft_filter_isa(sources)
    if(NOT WEFT_HAS_UCX)
        list(FILTER sources EXCLUDE REGEX "/(xfer|coll)_ucx_[a-z_]+\\.c$|/ucx_library\\.c$")
    endif()
    list(FILTER sources EXCLUDE REGEX "/kernels/cuda/|_(cuda|nccl)[a-z_]*\\.c$") # weft_cuda_host, cmake/cuda.cmake
    add_library(${name} STATIC ${sources})
    target_link_libraries(${name} PUBLIC weft_flags ${ARG_LIBRARIES})
    foreach(folder ${ARG_USES})
        string(REPLACE "/" "_" used weft_${folder})
        target_link_libraries(${name} PUBLIC ${used})
    endforeach()
    weft_isa_flags(${sources})
endfunction()

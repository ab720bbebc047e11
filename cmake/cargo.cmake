# SPDX-License-Identifier: Apache-2.0
# weft_cargo_folder(PATH USES folder...)
# The Rust staticlib of PATH/Cargo.toml (always --release --locked) as weft_<path>.
# WEFT_CARGO_TARGET_DIR (environment) shares compiled crates between build trees. WEFT_RUST_TARGET, of
# a toolchain file, is what cargo compiles for when it is not this machine.
find_program(CARGO cargo REQUIRED)
if(DEFINED ENV{WEFT_CARGO_TARGET_DIR})
    set(WEFT_CARGO_DIR $ENV{WEFT_CARGO_TARGET_DIR})
else()
    set(WEFT_CARGO_DIR ${CMAKE_SOURCE_DIR}/build/cargo)
endif()

if(WEFT_RUST_TARGET)
    set(cross "--target ${WEFT_RUST_TARGET} --config 'target.${WEFT_RUST_TARGET}.linker=\"${CMAKE_C_COMPILER}\"'")
endif()

function(weft_cargo_folder path)
    cmake_parse_arguments(ARG "" "" "USES" ${ARGN})
    file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${path}/src/*.rs)
    set(archive ${CMAKE_BINARY_DIR}/libweft_${path}_rs.a)
    # The lock: another tree that shares the folder may build its own version between build and copy.
    add_custom_command(OUTPUT ${archive}
        COMMAND ${CMAKE_COMMAND} -E make_directory ${WEFT_CARGO_DIR}
        COMMAND flock ${WEFT_CARGO_DIR}/weft_${path}.lock sh -c
            "'${CARGO}' build --release --locked ${cross} --manifest-path '${CMAKE_SOURCE_DIR}/${path}/Cargo.toml' --target-dir '${WEFT_CARGO_DIR}' && cp '${WEFT_CARGO_DIR}/${WEFT_RUST_TARGET}/release/libweft_${path}.a' '${archive}'"
        DEPENDS ${rust_sources} ${CMAKE_SOURCE_DIR}/${path}/Cargo.toml ${CMAKE_SOURCE_DIR}/${path}/Cargo.lock
        VERBATIM USES_TERMINAL
        COMMENT "cargo build ${path}")
    add_custom_target(weft_${path}_rs DEPENDS ${archive})
    # Imported, so that what the archive calls back into is linked after it.
    add_library(weft_${path} STATIC IMPORTED GLOBAL)
    add_dependencies(weft_${path} weft_${path}_rs)
    set_target_properties(weft_${path} PROPERTIES IMPORTED_LOCATION ${archive})
    foreach(folder ${ARG_USES})
        string(REPLACE "/" "_" used weft_${folder})
        target_link_libraries(weft_${path} INTERFACE ${used})
    endforeach()
    target_link_libraries(weft_${path} INTERFACE weft_flags ${CMAKE_DL_LIBS} m)
endfunction()

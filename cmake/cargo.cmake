# SPDX-License-Identifier: Apache-2.0
# weft_cargo_folder(PATH USES folder...)
# Builds the Rust staticlib of PATH/Cargo.toml (always --release --locked) and the C files beside it
# as weft_<path>. WEFT_CARGO_TARGET_DIR (environment) shares compiled crates between build trees.
find_program(CARGO cargo REQUIRED)
if(DEFINED ENV{WEFT_CARGO_TARGET_DIR})
    set(WEFT_CARGO_DIR $ENV{WEFT_CARGO_TARGET_DIR})
else()
    set(WEFT_CARGO_DIR ${CMAKE_SOURCE_DIR}/build/cargo)
endif()

function(weft_cargo_folder path)
    weft_folder(${path} ${ARGN})
    if(NOT EXISTS ${CMAKE_SOURCE_DIR}/${path}/Cargo.toml)
        return()
    endif()
    file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${path}/src/*.rs)
    set(archive ${CMAKE_BINARY_DIR}/libweft_${path}_rs.a)
    add_custom_command(OUTPUT ${archive}
        COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${WEFT_CARGO_DIR}
            ${CARGO} build --release --locked --manifest-path ${CMAKE_SOURCE_DIR}/${path}/Cargo.toml
        COMMAND ${CMAKE_COMMAND} -E copy ${WEFT_CARGO_DIR}/release/libweft_${path}.a ${archive}
        DEPENDS ${rust_sources} ${CMAKE_SOURCE_DIR}/${path}/Cargo.toml ${CMAKE_SOURCE_DIR}/${path}/Cargo.lock
        USES_TERMINAL
        COMMENT "cargo build ${path}")
    add_custom_target(weft_${path}_rs DEPENDS ${archive})
    add_dependencies(weft_${path} weft_${path}_rs)
    target_link_libraries(weft_${path} PUBLIC ${archive} ${CMAKE_DL_LIBS} m)
endfunction()

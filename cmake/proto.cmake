# SPDX-License-Identifier: Apache-2.0
# weft_proto(NAME...): proto/<name>.proto compiled by protobuf-c, as the library weft_proto; its headers
# are included as "generated/<name>.pb-c.h".
find_program(PROTOC_C protoc-c REQUIRED)

function(weft_proto)
    set(out ${CMAKE_BINARY_DIR}/generated/generated)
    file(MAKE_DIRECTORY ${out})
    set(sources)
    foreach(name ${ARGN})
        set(proto ${CMAKE_SOURCE_DIR}/proto/${name}.proto)
        add_custom_command(OUTPUT ${out}/${name}.pb-c.c ${out}/${name}.pb-c.h
            COMMAND ${PROTOC_C} --proto_path=${CMAKE_SOURCE_DIR}/proto --c_out=${out} ${proto}
            DEPENDS ${proto}
            VERBATIM
            COMMENT "Compiling ${name}.proto")
        list(APPEND sources ${out}/${name}.pb-c.c)
    endforeach()
    add_library(weft_proto STATIC ${sources})
    target_include_directories(weft_proto PRIVATE ${out})
    target_include_directories(weft_proto SYSTEM INTERFACE ${CMAKE_BINARY_DIR}/generated)
    target_link_libraries(weft_proto PUBLIC PkgConfig::PROTOBUFC)
endfunction()

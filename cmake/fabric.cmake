# SPDX-License-Identifier: Apache-2.0
# weft_fabric_library()
# The transfer fabric by itself, libweft-fabric.so: what transport/xfer/xfer.h declares and the parts
# of base that its types are of. transport/weft-fabric.map names what is to be seen; the linker leaves
# out what that does not need, also of the outside libraries.
function(weft_fabric_library)
    set(map ${CMAKE_SOURCE_DIR}/transport/weft-fabric.map)
    add_library(weft_fabric SHARED $<TARGET_OBJECTS:weft_transport>)
    target_link_libraries(weft_fabric PRIVATE weft_base)
    target_link_options(weft_fabric PRIVATE -Wl,--version-script=${map} -Wl,--as-needed
        -Wl,--gc-sections)
    set_target_properties(weft_fabric PROPERTIES OUTPUT_NAME weft-fabric LINKER_LANGUAGE C
        VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINK_DEPENDS ${map}
        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()

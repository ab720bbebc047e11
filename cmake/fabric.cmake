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

# weft_fabric_install()
# The library, its headers below include/weft and weft-fabric.pc, as a component of their own:
# `cmake --install build/release --component fabric --prefix DIR`. Headers include each other from the
# root of the tree; installed, that root is "weft", so that one -I finds them all.
function(weft_fabric_install)
    include(GNUInstallDirs)
    set(headers transport/xfer/xfer.h transport/xfer/xfer_exchange.h base/alloc.h base/buffer.h base/clock.h
        base/compiler.h base/diag.h base/log.h base/status.h base/status.def)
    foreach(header ${headers})
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${header})
        file(READ ${CMAKE_SOURCE_DIR}/${header} text)
        string(REGEX REPLACE "#include \"(base|transport)/" "#include \"weft/\\1/" text "${text}")
        file(WRITE ${CMAKE_BINARY_DIR}/include/weft/${header} "${text}")
        get_filename_component(folder ${header} DIRECTORY)
        install(FILES ${CMAKE_BINARY_DIR}/include/weft/${header}
            DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/weft/${folder} COMPONENT fabric)
    endforeach()

    set(pkgconfig ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
    file(RELATIVE_PATH up /prefix/${pkgconfig} /prefix)
    file(WRITE ${CMAKE_BINARY_DIR}/weft-fabric.pc
        "prefix=\${pcfiledir}/${up}\n"
        "libdir=\${prefix}/${CMAKE_INSTALL_LIBDIR}\n"
        "includedir=\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}\n\n"
        "Name: weft-fabric\n"
        "Description: Moves blocks of memory between processes and machines\n"
        "Version: ${PROJECT_VERSION}\n"
        "Libs: -L\${libdir} -lweft-fabric\n"
        "Cflags: -I\${includedir}\n")
    install(FILES ${CMAKE_BINARY_DIR}/weft-fabric.pc DESTINATION ${pkgconfig} COMPONENT fabric)
    install(TARGETS weft_fabric LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT fabric
        NAMELINK_COMPONENT fabric)
endfunction()

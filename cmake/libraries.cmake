# SPDX-License-Identifier: Apache-2.0
# Every outside library, its lowest version and its Debian package, in one place.
# `./dev` reads the "apt:" words to install what is missing.
find_package(PkgConfig REQUIRED)                                   # apt: pkg-config
find_package(Threads REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.13)  # apt: libjansson-dev
pkg_check_modules(YAML REQUIRED IMPORTED_TARGET yaml-0.1>=0.2)     # apt: libyaml-dev
pkg_check_modules(MHD REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.73)  # apt: libmicrohttpd-dev
pkg_check_modules(GNUTLS REQUIRED IMPORTED_TARGET gnutls>=3.7)     # apt: libgnutls28-dev
pkg_check_modules(CURL REQUIRED IMPORTED_TARGET libcurl>=7.74)     # apt: libcurl4-openssl-dev
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto>=3.0)  # apt: libssl-dev
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash>=0.8)  # apt: libxxhash-dev
pkg_check_modules(HWLOC REQUIRED IMPORTED_TARGET hwloc>=2.4)       # apt: libhwloc-dev
pkg_check_modules(ZMQ REQUIRED IMPORTED_TARGET libzmq>=4.3)        # apt: libzmq3-dev
pkg_check_modules(MSGPACK REQUIRED IMPORTED_TARGET msgpack>=4.0)   # apt: libmsgpack-dev
pkg_check_modules(URING REQUIRED IMPORTED_TARGET liburing>=2.3)    # apt: liburing-dev
pkg_check_modules(PROTOBUFC REQUIRED IMPORTED_TARGET libprotobuf-c>=1.3)  # apt: libprotobuf-c-dev
pkg_check_modules(CMOCKA IMPORTED_TARGET cmocka>=1.1.5)            # apt: libcmocka-dev

add_library(weft_libraries INTERFACE)
target_link_libraries(weft_libraries INTERFACE Threads::Threads PkgConfig::JANSSON PkgConfig::YAML
    PkgConfig::MHD PkgConfig::GNUTLS PkgConfig::CURL PkgConfig::CRYPTO PkgConfig::XXHASH
    PkgConfig::HWLOC PkgConfig::ZMQ PkgConfig::MSGPACK PkgConfig::URING m)

# libfabric is loaded at run time; only its headers are needed to build, and without them the backend
# "ofi" says that it cannot be had.
pkg_check_modules(OFI IMPORTED_TARGET libfabric>=1.14)             # apt: libfabric-dev
if(OFI_FOUND)
    target_include_directories(weft_libraries SYSTEM INTERFACE ${OFI_INCLUDE_DIRS})
    target_compile_definitions(weft_libraries INTERFACE WEFT_HAS_OFI)
    target_link_libraries(weft_libraries INTERFACE ${CMAKE_DL_LIBS})
endif()

# PMIx is opened at run time, where mpirun or srun brings it; only its headers are needed to build, and
# without them ranks on several hosts take the leader's address from what mpirun puts in the environment.
pkg_check_modules(PMIX IMPORTED_TARGET pmix>=3)                    # apt: libpmix-dev
if(PMIX_FOUND)
    target_include_directories(weft_libraries SYSTEM INTERFACE ${PMIX_INCLUDE_DIRS})
    target_compile_definitions(weft_libraries INTERFACE WEFT_HAS_PMIX)
    target_link_libraries(weft_libraries INTERFACE ${CMAKE_DL_LIBS})
endif()

# UCX is loaded at run time; only its headers are needed to build, and without them the backend "ucx"
# says that it cannot be had. `./dev` unpacks the wheel of scripts/requirements-ucx.txt into build/ucx;
# without it the system's is taken, if it is not older than what NIXL's releases exchange keys with.
set(WEFT_UCX_OLDEST_MINOR 19)  # 1.19
set(WEFT_UCX_ROOT ${CMAKE_SOURCE_DIR}/build/ucx/libucx CACHE PATH "UCX: the folder of include/ and lib/")
if(EXISTS ${WEFT_UCX_ROOT}/include/ucp/api/ucp.h)
    set(ucx_include ${WEFT_UCX_ROOT}/include)
    set(ucx_library ${WEFT_UCX_ROOT}/lib/libucp.so.0)
else()
    pkg_check_modules(UCX QUIET ucx>=1.${WEFT_UCX_OLDEST_MINOR})
    if(UCX_FOUND)
        pkg_get_variable(ucx_include ucx includedir)
        pkg_get_variable(ucx_libdir ucx libdir)
        set(ucx_library ${ucx_libdir}/libucp.so.0)
    endif()
endif()
if(ucx_include)
    set(WEFT_HAS_UCX ON)
    target_include_directories(weft_libraries SYSTEM INTERFACE ${ucx_include})
    target_compile_definitions(weft_libraries INTERFACE WEFT_UCX_LIBRARY="${ucx_library}"
        WEFT_UCX_OLDEST_MINOR=${WEFT_UCX_OLDEST_MINOR})
    target_link_libraries(weft_libraries INTERFACE ${CMAKE_DL_LIBS})
else()
    set(WEFT_HAS_UCX OFF)
    message(STATUS "UCX: no headers; the transfer fabric is built without it")
endif()

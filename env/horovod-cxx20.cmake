# Lets CMake build the unmodified Horovod 0.28.1 against a torch that needs C++20. env/horovod.sh names this file in CMAKE_TOOLCHAIN_FILE,
# which CMake (3.21 or newer) reads from the environment. Horovod asks for C++14, and CMake puts that switch last on the command line, where
# no CXXFLAGS can change it; so the meaning of "C++14" is changed instead. project() resets that meaning, hence two passes over this file:
# as the toolchain file it asks to be included again after every project(), and only then PROJECT_NAME is set.
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_FILE}")
if(PROJECT_NAME)
    set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++20")
    # no debug symbols: 1 MB instead of 20
    set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")
    # libmpi in lib/ of the environment and torch's libraries, seen from site-packages/horovod/torch/: the cached wheel fits any environment
    set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
    set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../.." "$ORIGIN/../../torch/lib")
endif()

# Read where llama.cpp's own project begins. llama-cpp-python turns its helpers for command lines and
# servers on whatever it is told: half of all files to compile, which nothing in the package loads.
set(LLAMA_BUILD_COMMON OFF)

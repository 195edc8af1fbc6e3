# Included right after project(llama_cpp): compiles the target `llama` in batches of files, which
# nearly halves the build. That target alone: ggml's sources define the same names twice.
function(wattledger_unity)
  if(TARGET llama)
    set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
  endif()
endfunction()
cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL wattledger_unity)

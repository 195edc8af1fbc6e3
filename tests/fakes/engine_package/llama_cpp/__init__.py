"""What an attached Python takes for llama-cpp-python, in a process of its own."""

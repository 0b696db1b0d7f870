"""Prints the XLA flags with which programs compile fastest, though they run slower."""

import jaxlib.version

FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jaxlib.version.__version_info__ < (0, 11):  # later ones abort at a flag that is gone
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

if __name__ == "__main__":
    print(*FLAGS)

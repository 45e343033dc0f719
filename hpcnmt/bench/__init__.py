"""The benchmark harness: what `hpcnmt bench` measures and `hpcnmt report` shows. Configurations and results are in benchmarks/."""

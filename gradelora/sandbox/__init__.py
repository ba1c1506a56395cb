"""A loopback Hub and a tiny gpt-oss checkpoint, for the demo, the tests and the benchmarks."""

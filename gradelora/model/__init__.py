"""The base model in memory: loading, MXFP4, adapters and rows that share a prefix."""

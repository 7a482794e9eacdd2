//! Checkpoint files: PyTorch archives and safetensors, whole or in shards.
